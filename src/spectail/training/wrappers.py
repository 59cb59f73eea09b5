"""Find optimizers inside of optimizers: SAM, Lookahead, ZeRO and accelerate wrap another one.

An optimizer may hold others in any attribute, list or dict, several levels deep. The innermost ones
are those whose ``step`` reads the rates, whichever method is called from outside; for example
``sam.second_step()`` steps only SAM's base optimizer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectail.errors import TrainingError


@dataclass(frozen=True)
class Optimizers:
    """An optimizer together with all optimizers inside of it."""

    members: tuple[Any, ...]
    """All of them, the outermost first."""
    innermost: tuple[Any, ...]
    """Those that hold no other one."""

    @property
    def outermost(self) -> torch.optim.Optimizer:
        """The first one that runs hooks, or else the first: ``Balancer.optimizer``."""
        first: torch.optim.Optimizer = next(
            (one for one in self.members if has_hooks(one)), self.members[0]
        )
        return first

    def groups(self) -> Iterator[tuple[Any, int, dict[str, Any]]]:
        """Yield (optimizer, number, group) for every group of the innermost optimizers."""
        for optimizer in self.innermost:
            for i, group in enumerate(optimizer.param_groups):
                yield optimizer, i, group

    def held(self) -> set[int]:
        """Return the ``id`` of every parameter in any group of any member."""
        # Under ZeRO the inner optimizer holds only this process's share, so all members count.
        groups = (group for member in self.members for group in member.param_groups)
        return {id(p) for group in groups for p in group["params"]}

    def hooks(self) -> Iterator[Any]:
        """Yield the objects whose methods are hooked before the members' steps."""
        for member in self.members:
            for hook in getattr(member, "_optimizer_step_pre_hooks", {}).values():
                yield getattr(hook, "__self__", None)

    def with_inner(self, outer: Any, inner: Any) -> Optimizers:
        """Return the same with ``inner`` added, an optimizer found while ``outer`` was stepping."""
        # What holds another optimizer is not innermost any more.
        rest = tuple(member for member in self.innermost if member is not outer)
        return Optimizers((*self.members, inner), (*rest, inner))


def find_optimizers(given: Any) -> Optimizers:
    """Return the optimizer that was given to a Balancer with all optimizers inside of it.

    Raises:
        TrainingError: there is no optimizer.

    """
    inside: dict[int, list[Any]] = {}
    found: dict[int, Any] = {}
    waiting = deque([given])
    while waiting:
        thing = waiting.popleft()
        if id(thing) in inside:
            continue
        if is_optimizer(thing):
            found[id(thing)] = thing
        held = [value for value in _values_of(thing) if is_optimizer(value) and value is not thing]
        inside[id(thing)] = held
        # An engine is no optimizer itself; its ``optimizer`` attribute is followed.
        waiting.extend(held or _named_optimizer(thing))
    # Optimizers that hold each other have no innermost one: the last found is taken.
    innermost = [thing for key, thing in found.items() if not inside[key]] or list(found.values())[
        -1:
    ]
    if not found:
        raise TrainingError(
            "expected a torch.optim.Optimizer (a subclass that calls its __init__), not "
            f"{type(given).__name__}"
        )
    return Optimizers(tuple(found.values()), tuple(innermost))


def is_optimizer(thing: Any) -> bool:
    """Whether a thing has a ``step`` and groups; wrappers need not be torch optimizers."""
    # A model may have a method called step too.
    if isinstance(thing, nn.Module | type) or not callable(getattr(type(thing), "step", None)):
        return False
    return isinstance(getattr(thing, "param_groups", None), list)


def has_hooks(optimizer: Any) -> bool:
    """Whether ``step`` runs hooks: a torch optimizer whose ``__init__`` was called."""
    hooked = (
        getattr(type(optimizer).step, "hooked", False)
        if hasattr(type(optimizer), "step")
        else False
    )
    return (
        isinstance(optimizer, torch.optim.Optimizer)
        and hooked
        and hasattr(optimizer, "_optimizer_step_pre_hooks")
    )


def share_groups(one: Any, other: Any) -> bool:
    """Whether two optimizers have a group in common, that is, the very same dict."""
    return not {id(group) for group in one.param_groups}.isdisjoint(
        id(group) for group in other.param_groups
    )


def _values_of(thing: Any) -> Iterator[Any]:
    """Yield the values of an object's attributes, and the values in its lists and dicts."""
    # Some wrappers keep their optimizer in a slot, which ``__dict__`` lacks.
    slots = [
        name
        for kind in type(thing).__mro__
        for name in getattr(kind, "__slots__", ())
        if hasattr(thing, name)
    ]
    attributes = [
        *getattr(thing, "__dict__", {}).values(),
        *(getattr(thing, name) for name in slots),
    ]
    for value in attributes:
        if isinstance(value, Mapping):
            yield from value.values()
        elif isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _named_optimizer(thing: Any) -> list[Any]:
    """Return the ``optimizer`` attribute of an engine that is no optimizer itself, as a list."""
    inner = getattr(thing, "optimizer", None)
    return [inner] if inner is not None and not is_optimizer(thing) else []
