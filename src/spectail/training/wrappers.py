"""Optimizers around optimizers: SAM, Lookahead, ZeRO or accelerate hold another one.

The one that was given may hold others in any attribute, list or dict, several deep. The innermost
ones are those whose ``step`` reads the rates, whatever is called from outside:
``sam.second_step()`` steps SAM's base optimizer alone.
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
    """An optimizer with all those inside of it, the outermost first."""

    members: tuple[Any, ...]
    innermost: tuple[Any, ...]
    """Those that hold no other one."""

    @property
    def outermost(self) -> torch.optim.Optimizer:
        """The first that runs hooks, or else the first: ``Balancer.optimizer``."""
        first: torch.optim.Optimizer = next(
            (one for one in self.members if has_hooks(one)), self.members[0]
        )
        return first

    def groups(self) -> Iterator[tuple[Any, int, dict[str, Any]]]:
        """Every group of the innermost optimizers, with its optimizer and its number there."""
        for optimizer in self.innermost:
            for i, group in enumerate(optimizer.param_groups):
                yield optimizer, i, group

    def held(self) -> set[int]:
        """The ``id`` of every parameter in any group; inner ones may hold one process's share."""
        groups = (group for member in self.members for group in member.param_groups)
        return {id(p) for group in groups for p in group["params"]}

    def hooks(self) -> Iterator[Any]:
        """The objects whose methods are called before steps of theirs."""
        for member in self.members:
            for hook in getattr(member, "_optimizer_step_pre_hooks", {}).values():
                yield getattr(hook, "__self__", None)

    def with_inner(self, outer: Any, inner: Any) -> Optimizers:
        """The same after ``inner``, which was hidden in ``outer``, has shown itself."""
        rest = tuple(member for member in self.innermost if member is not outer)
        return Optimizers((*self.members, inner), (*rest, inner))


def find_optimizers(given: Any) -> Optimizers:
    """The optimizers in what was given to a Balancer.

    Raises:
        TrainingError: there is none.

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
        # What is no optimizer itself is searched only where it is what the user has given.
        waiting.extend(held or _named_optimizer(thing))
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
    """Whether something can be stepped and has groups; wrappers need not be torch optimizers."""
    if isinstance(thing, nn.Module | type) or not callable(getattr(type(thing), "step", None)):
        return False
    return isinstance(getattr(thing, "param_groups", None), list)


def has_hooks(optimizer: Any) -> bool:
    """Whether its ``step`` runs hooks: a torch optimizer whose ``__init__`` has made them."""
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
    """Whether two optimizers hold a group in common, the very same dict, in one list or in two."""
    return not {id(group) for group in one.param_groups}.isdisjoint(
        id(group) for group in other.param_groups
    )


def _values_of(thing: Any) -> Iterator[Any]:
    """The values of an object's attributes, and those in its lists and dicts."""
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
    """What an engine that is no optimizer itself calls its optimizer."""
    inner = getattr(thing, "optimizer", None)
    return [inner] if inner is not None and not is_optimizer(thing) else []
