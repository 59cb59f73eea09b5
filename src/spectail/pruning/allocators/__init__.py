"""Allocators: the rules that ``spectail prune`` knows by name. One line each in the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spectail import presets
from spectail.basics.addresses import without_secrets
from spectail.errors import PruneError
from spectail.pruning.allocators.base import (
    Allocator,
    FixedAllocator,
    Make,
    Prepared,
    check_eps,
)
from spectail.pruning.allocators.by_activations import DLP, DSA, OWL, ByActivations
from spectail.pruning.allocators.by_alpha import ByAlpha
from spectail.pruning.allocators.by_depth import Depth, by_depth
from spectail.pruning.allocators.by_shape import ErdosRenyi
from spectail.pruning.allocators.by_threshold import GLOBAL, LAMP, ByThreshold
from spectail.pruning.allocators.from_file import FromFile
from spectail.pruning.allocators.uniform import Uniform, uniform
from spectail.pruning.setting import Setting

ALLOCATORS: list[Allocator] = [
    Uniform(),
    Depth(),
    Depth(by_kind=True),
    ByAlpha("farms", "alpha in windows, cutoff at the median", presets.FARMS),
    ByAlpha(
        "farms-tail",
        "alpha in windows, from the largest 10 %, compared within each kind of layer",
        presets.FARMS_TAIL,
        standardize_by_kind=True,
    ),
    ByAlpha("farms-llm", "alpha in windows as published (FARMS)", presets.FARMS_LLM),
    ByAlpha("alphapruning", "alpha of whole matrices as published", presets.ALPHAPRUNING),
    OWL,
    DLP,
    DSA,
    GLOBAL,
    LAMP,
    ErdosRenyi(),
]
"""All allocators: the parser, the help text and the documentation's table follow from this list."""


def allocator_names() -> list[str]:
    """Return the names of all allocators, as the command line writes them."""
    return [rule.name for rule in ALLOCATORS]


def as_allocator(given: Allocator | str) -> Allocator:
    """Return an allocator that is given as itself, by name, as ``depth:FORM``, or as a file's path.

    Raises:
        PruneError: it is neither a known name nor a file.

    """
    if isinstance(given, Allocator):
        return given
    name, _, form = given.partition(":")
    for rule in ALLOCATORS:
        if given == rule.name:
            return rule
        if name == rule.name and form and isinstance(rule, Depth):
            return replace(rule, form=form)
    if Path(given).exists():
        return FromFile(given)
    raise PruneError(
        f"allocation must be one of {', '.join(allocator_names())} or a file, "
        f"not {without_secrets(given)!r}"
    )


def default_allocator(eps: float | str | None, *, by_inputs: bool) -> Depth:
    """Return the rule of ``spectail prune`` if none is named: the place in depth and the kind.

    No rule compared in ``docs/allocation-results.md`` was better on both models. With the eps
    ``auto`` text chooses the form too. Without a choice it is one that was never far from the best:
    ``by_inputs`` tells whether the pruning method goes by the layers' inputs.
    """
    if eps == "auto":
        return Depth(by_kind=True)
    return Depth("first-rising" if by_inputs else "first-last", by_kind=True)


def check_takes_eps(rule: Allocator) -> None:
    """Raise PruneError if the rule has no eps."""
    if not rule.settings:
        names = ", ".join(rule.name for rule in ALLOCATORS if rule.settings)
        raise PruneError(f"eps goes with {names}, not with {rule.name}")


__all__ = [
    "ALLOCATORS",
    "DLP",
    "DSA",
    "GLOBAL",
    "LAMP",
    "OWL",
    "Allocator",
    "ByActivations",
    "ByAlpha",
    "ByThreshold",
    "Depth",
    "ErdosRenyi",
    "FixedAllocator",
    "FromFile",
    "Make",
    "Prepared",
    "Setting",
    "Uniform",
    "allocator_names",
    "as_allocator",
    "by_depth",
    "check_eps",
    "check_takes_eps",
    "default_allocator",
    "uniform",
]
