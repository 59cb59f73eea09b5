"""Targets by name: what can be allocated, each with the options that it takes."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeAlias

from spectail.allocation.bits import Bits
from spectail.allocation.learning_rates import LearningRate
from spectail.allocation.sparsity import Sparsity
from spectail.allocation.weight_decay import WeightDecay
from spectail.errors import AllocationError

__all__ = [
    "BY_NAME",
    "Bits",
    "LearningRate",
    "Sparsity",
    "Target",
    "WeightDecay",
    "as_target",
    "settings",
]

Target: TypeAlias = Sparsity | Bits | LearningRate | WeightDecay

BY_NAME: dict[str, type[Target]] = {
    kind.name: kind for kind in (Sparsity, Bits, LearningRate, WeightDecay)
}


def as_target(given: Target | str, **options: Any) -> Target:
    """A target, or the one of that name, with the options that are not None; an option that it lacks is an error."""
    if isinstance(given, str) and given not in BY_NAME:
        raise AllocationError(f"target must be one of {', '.join(BY_NAME)}, not {given!r}")
    if not isinstance(given, str | Target):
        raise AllocationError(f"target must be one of spectail.targets or its name, not {given!r}")
    kind = BY_NAME[given] if isinstance(given, str) else type(given)
    chosen = {name: value for name, value in options.items() if value is not None}
    known = [field.name for field in fields(kind)]
    for name in chosen:
        if name not in known:
            raise AllocationError(f"target {kind.name} takes {', '.join(known)}, but no {name}")
    return kind(**chosen) if isinstance(given, str) else replace(given, **chosen)


def settings(target: Target) -> dict[str, Any]:
    """The target's options as plain JSON values, the map as its text."""
    values = {field.name: getattr(target, field.name) for field in fields(target)}
    plain = {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }
    return plain | ({"map": str(plain["map"])} if "map" in plain else {})
