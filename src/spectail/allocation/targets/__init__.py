"""Targets: what can be allocated, each with its options. One file each, one line in the table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spectail.allocation.targets.base import Target
from spectail.allocation.targets.bits import Bits
from spectail.allocation.targets.freeze import Freeze
from spectail.allocation.targets.learning_rate import LearningRate
from spectail.allocation.targets.sparsity import Sparsity
from spectail.allocation.targets.weight_decay import WeightDecay
from spectail.errors import AllocationError

TARGETS: list[type[Target]] = [
    Sparsity,
    Bits,
    LearningRate,
    WeightDecay,
    Freeze,
]
"""All targets: the parser, the help text and the documentation's table follow from this list."""


def target_names() -> list[str]:
    """Return the names of all targets, as the command line writes them."""
    return [target.name for target in TARGETS]


def as_target(given: Target | str, /, **options: Any) -> Target:
    """Return a target that is given as itself or by name, with the options that are not None.

    Raises:
        AllocationError: an unknown target, an option that it lacks, or a value that it refuses.

    """
    if isinstance(given, str) and given not in target_names():
        raise AllocationError(f"target must be one of {', '.join(target_names())}, not {given!r}")
    if not isinstance(given, str | Target):
        raise AllocationError(f"target must be one of spectail.targets or its name, not {given!r}")
    kind = type(given) if isinstance(given, Target) else _named(given)
    # None means "not given": the type's own default counts.
    chosen = {name: value for name, value in options.items() if value is not None}
    for name in chosen:
        if name not in kind.options():
            raise AllocationError(
                f"target {kind.name} takes {', '.join(kind.options())}, but no {name}"
            )
    return kind(**chosen) if isinstance(given, str) else replace(given, **chosen)  # type: ignore[type-var]


def _named(name: str) -> type[Target]:
    """Return the target of a known name."""
    return next(target for target in TARGETS if target.name == name)


__all__ = [
    "TARGETS",
    "Bits",
    "Freeze",
    "LearningRate",
    "Sparsity",
    "Target",
    "WeightDecay",
    "as_target",
    "target_names",
]
