"""Follow the steps of an optimizer and of the optimizers inside of it, however they are called.

The split groups are in place while an innermost optimizer steps. A wrapper whose own ``step`` also
uses the groups has them during its whole step, if a trial has shown that it can. A step counts when
the outermost call ends and an innermost optimizer has stepped in it, so that SAM's
``step(closure)`` and ``second_step()`` count the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from functools import update_wrapper
from types import MethodType
from typing import Any
from weakref import WeakMethod

import torch

from spectail.training.groups import Group, SplitGroups
from spectail.training.step_hooks import look_at_steps
from spectail.training.wrappers import Optimizers, has_hooks, share_groups

LOOKED_AT = 3
"""How many steps after the start, and after every measurement, are examined: for optimizers not
known yet, and for other values than given. More would cost time in every step."""


class Steps:
    """Puts split groups in place for the steps of optimizers.

    ``whole`` holds the ``id`` of the wrappers that have them during their whole step. ``factors``
    returns the factors of the next step, and ``done`` is called after each step.
    """

    def __init__(
        self,
        optimizers: Optimizers,
        groups: SplitGroups,
        *,
        whole: Collection[int],
        factors: Callable[[], Mapping[str, float]],
        done: Callable[[], None],
    ) -> None:
        self.optimizers, self.groups, self.whole = optimizers, groups, frozenset(whole)
        self.differing: set[str] = set()
        """Units that the last step used with another value than the one given."""
        self._factors, self._done = factors, done
        self._running: list[Any] = []
        self._opened: list[Any] = []
        self._interrupted: list[Any] = []
        self._stepped = False
        self._looked = 0
        self._end_looking: Callable[[], None] | None = None
        self._undo: list[Callable[[], None]] = []
        hooked: set[int] = set()
        # From the inside outwards; wrappers may share the hooks of their inner optimizer.
        for optimizer in reversed(optimizers.members):
            if has_hooks(optimizer):
                hooks = id(optimizer._optimizer_step_pre_hooks)
                self._hook(optimizer, shared=hooks in hooked)
                hooked.add(hooks)
            elif id(optimizer) in self.whole or (
                self._is_innermost(optimizer) and not has_hooks(optimizer)
            ):
                self._replace(optimizer, self._stepped_through)

    def remove(self) -> None:
        """Remove all hooks, so that the optimizers step as before."""
        self.groups.restore()
        while self._undo:
            self._undo.pop()()
        self._look(False)

    def look_again(self) -> None:
        """Examine the next steps, for hidden optimizers and other values than given."""
        self._looked = 0

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Begin a step; with a closure, returns changed arguments, the optimizer first."""
        self._forget(optimizer)
        self._running.append(optimizer)
        # Only the outermost step decides, and those inside of it are examined with it.
        if len(self._running) == 1 and self._looked < LOOKED_AT:
            self._look(True)
        if not self._is_innermost(optimizer) and id(optimizer) not in self.whole:
            return None
        # A step inside of a step whose groups are split already.
        if self.groups.covers(optimizer.param_groups):
            return None
        self._open(optimizer)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            return None
        outside = self._outside(optimizer, closure)
        if len(args) > 1:
            return (args[0], outside, *args[2:]), kwargs
        return args, {**kwargs, "closure": outside}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def after(self, optimizer: Any, *_: Any) -> None:
        """End a step."""
        inside = any(one is optimizer for one in self._running)
        # A step() that has called its parent's step() gets here twice.
        if not (inside or self._is_open(optimizer)):
            return
        # Inner steps that raised never reached their end.
        while inside and self._running.pop() is not optimizer:
            pass
        self._stepped = self._stepped or self._is_innermost(optimizer)
        if not self._running:
            self._look(False)
        self._close(optimizer)
        if not self._running and self._stepped:
            self._stepped = False
            self._looked += 1
            self._done()

    def _is_innermost(self, optimizer: Any) -> bool:
        return any(one is optimizer for one in self.optimizers.innermost)

    def _is_open(self, optimizer: Any) -> bool:
        return bool(self._opened) and self._opened[-1] is optimizer

    def _close(self, optimizer: Any) -> bool:
        """Put the user's groups back if this optimizer has split them; whether it had."""
        opened = self._is_open(optimizer)
        if opened:
            self._opened.pop()
            self.groups.leave(optimizer)
        return opened

    def _forget(self, optimizer: Any) -> None:
        """Clear what an earlier step of this optimizer has left behind because it raised."""
        while any(one is optimizer for one in self._running):
            self._running.pop()
        while self._opened and not any(one is self._opened[-1] for one in self._running):
            self._opened.pop()
        self.groups.restore(len(self._opened))

    def _open(self, optimizer: Any) -> None:
        """Put split groups in place in all lists that share groups with this optimizer."""
        own: dict[int, list[Group]] = {}
        around: list[list[Group]] = []
        seen: set[int] = set()
        # The innermost come first: a list that a wrapper shares with one of them belongs to it.
        for member in (*self.optimizers.innermost, *self.optimizers.members):
            groups = member.param_groups
            if id(groups) in seen or not (member is optimizer or share_groups(member, optimizer)):
                continue
            seen.add(id(groups))
            numbers = [n for n, one in enumerate(self.optimizers.innermost) if one is member]
            if numbers:
                own[numbers[0]] = groups
            else:
                around.append(groups)
        self.groups.enter(own, around, self._factors())
        self._opened.append(optimizer)
        if self._looked < LOOKED_AT:
            self.differing |= self.groups.differing(optimizer.param_groups)

    def _outside(self, optimizer: Any, closure: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a closure so that it sees the user's groups, for it is the user's code."""
        # Lightning, for one, runs the whole training step in a closure.

        def call(*args: Any, **kwargs: Any) -> Any:
            opened = self._close(optimizer)
            try:
                return closure(*args, **kwargs)
            finally:
                # An optimizer may catch what a closure raises, and go on.
                if opened and self._undo:  # the closure may have removed the Balancer
                    self._open(optimizer)

        return call

    def _hook(self, optimizer: Any, *, shared: bool = False) -> None:
        """Follow an optimizer that runs hooks; ``shared`` ones are registered already."""
        # torch runs no hook after a step that raises, so the method is replaced as well.
        self._replace(optimizer, self._guarded)
        if shared:
            return
        # The user's own hooks after a step must see the user's groups, so this one runs first.
        handle = optimizer.register_step_post_hook(self.after)
        if isinstance(optimizer._optimizer_step_post_hooks, OrderedDict):
            optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)
        handles = [handle, optimizer.register_step_pre_hook(self.before)]
        # A state dict must hold the user's groups. A wrapper may lack these hooks, if it returns
        # the state of its inner optimizer.
        if hasattr(optimizer, "_optimizer_state_dict_pre_hooks"):
            handles.append(optimizer.register_state_dict_pre_hook(self._interrupt))
            handles.append(optimizer.register_state_dict_post_hook(self._resume))
        if hasattr(optimizer, "_optimizer_load_state_dict_pre_hooks"):
            handles.append(optimizer.register_load_state_dict_pre_hook(self._forget_all))
        self._undo += [handle.remove for handle in handles]

    def _interrupt(self, *_: Any) -> None:
        """Put the user's groups back in the middle of a step."""
        self._interrupted = self._opened[::-1]
        for optimizer in self._interrupted:
            self._close(optimizer)

    def _resume(self, *_: Any) -> None:
        """Split the groups again for the rest of the step."""
        while self._interrupted:
            self._open(self._interrupted.pop())

    def _forget_all(self, *_: Any) -> None:
        """Put the user's groups back for good: what is loaded replaces them."""
        self.groups.restore()
        self._opened.clear()

    def _guarded(self, optimizer: Any, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make a step of an optimizer that runs hooks, and repair the groups if it raises."""
        try:
            return inner(*args, **kwargs)
        except BaseException:
            self._give_up(optimizer)
            raise

    def _stepped_through(
        self, optimizer: Any, inner: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Make a step of an optimizer that runs no hooks."""

        def step(*args: Any, **kwargs: Any) -> Any:
            changed = self.before(optimizer, (optimizer, *args), kwargs)
            given, kwargs = changed or ((optimizer, *args), kwargs)
            result = inner(*given[1:], **kwargs)
            self.after(optimizer)
            return result

        return self._guarded(optimizer, step, *args, **kwargs)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _give_up(self, optimizer: Any) -> None:
        """End a step that has raised: the user's groups are whole again at once."""
        self._forget(optimizer)
        if not self._running:
            self._stepped = False
            self._look(False)

    def _replace(self, optimizer: Any, through: Callable[..., Any]) -> None:
        """Replace the ``step`` of an optimizer by ``through(optimizer, step, ...)``.

        A scheduler may wrap the new method. Then it stays when the Balancer is removed, and only
        passes the call on.
        """
        before, inner, following = vars(optimizer).get("step"), optimizer.step, [True]

        def step(self_: Any, *args: Any, **kwargs: Any) -> Any:
            if not following or self_ is not optimizer:  # a copy has this method too
                return (
                    inner(*args, **kwargs)
                    if self_ is optimizer
                    else type(self_).step(self_, *args, **kwargs)
                )
            return through(optimizer, inner, *args, **kwargs)

        def undo() -> None:
            following.clear()
            if getattr(vars(optimizer).get("step"), "__func__", None) is step:
                del optimizer.step
                if before is not None:
                    optimizer.step = before

        update_wrapper(step, inner)  # with the mark of a scheduler that was there before
        optimizer.step = MethodType(step, optimizer)
        self._undo.append(undo)

    def _look(self, on: bool) -> None:
        """Start or stop to watch the steps of all torch optimizers in the process."""
        if self._end_looking is not None and not on:
            self._end_looking()
            self._end_looking = None
        elif self._end_looking is None and on:
            seen = WeakMethod(self._seen)  # a step that raises goes on looking until the next one

            def look(optimizer: Any) -> None:
                if (method := seen()) is not None:
                    method(optimizer)

            self._end_looking = look_at_steps(look)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _seen(self, optimizer: Any) -> None:
        """Follow an optimizer that steps inside of a known one and holds the same parameters."""
        known = any(one is optimizer for one in self.optimizers.members)
        if known or not self._running or not has_hooks(optimizer):
            return
        # An optimizer of another model (a discriminator, say) may step at the same time.
        mine = self.optimizers.held()
        if any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
            self.optimizers = self.optimizers.with_inner(self._running[-1], optimizer)
            self._hook(optimizer)
