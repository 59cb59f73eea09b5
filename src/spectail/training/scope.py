"""Which units take part: what the rule, the optimizer and the model's structure say, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from spectail.allocation.coverage import cover
from spectail.core.measure import too_small
from spectail.errors import AllocationError, TrainingError
from spectail.measurement import record_of
from spectail.models.naming.select import matches
from spectail.models.source import Layer
from spectail.training.rules import Rule
from spectail.training.structure import Unit, first_and_last, units_of

SHOWN = 4
"""How many names a message lists before it counts the rest."""


@dataclass(frozen=True)
class Scope:
    """The units that are balanced, in the model's order, and the others with their reasons."""

    units: tuple[Unit, ...]
    unit_of: Mapping[int, int]
    """Number of the unit by the ``id`` of each of its parameters that the optimizer holds."""
    left_out: Mapping[str, str]
    forgotten: tuple[str, ...]
    """Units that the rule would take and that could be trained, but are in no group of the optimizer."""


def find_scope(model: nn.Module, layers: Sequence[Layer], optimizer: torch.optim.Optimizer, rule: Rule) -> Scope:
    """Choose the units that take part.

    Raises:
        TrainingError: a glob that changes nothing, an optimizer of another model, no unit that takes part, a parameter
            in two groups, an optimizer whose groups cannot be scaled.

    """
    held = _held(optimizer, model, rule.option)
    units = units_of(model, layers)
    known = {id(p) for unit in units for p in unit.parameters}
    if not known & held:
        first = next(name for name, _ in model.named_parameters())
        raise TrainingError(
            f"the optimizer holds none of the model's parameters (such as {first}): "
            "build it from the parameters of this very model, after anything that replaces them"
        )
    reasons = _by_rule(units, {layer.name: layer for layer in layers}, rule, first_and_last(model, units))
    forgotten = []
    for unit in units:
        if not any(id(p) in held for p in unit.weights):
            frozen = not any(p.requires_grad for p in unit.weights)
            forgotten += [] if frozen or unit.name in reasons else [unit.name]
            reasons.setdefault(unit.name, "frozen" if frozen else "not in the optimizer")
        elif not any(p.requires_grad for p in unit.weights):
            reasons.setdefault(unit.name, "frozen")
    chosen = tuple(unit for unit in units if unit.name not in reasons)
    if not chosen:
        why = listed([f"{name} ({reason})" for name, reason in reasons.items()])
        raise TrainingError(f"no layer takes part in {rule.name}: {why}; name those that should with include")
    unit_of = {id(p): i for i, unit in enumerate(chosen) for p in unit.parameters if id(p) in held}
    return Scope(chosen, unit_of, reasons, tuple(forgotten))


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _held(optimizer: torch.optim.Optimizer, model: nn.Module, option: str) -> set[int]:
    """The ``id`` of all parameters of an optimizer whose groups can be split and scaled."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TrainingError("LBFGS takes one step along all parameters at once: it has no rates per layer to balance")
    names = {id(p): name for name, p in model.named_parameters()}
    where: dict[int, int] = {}
    for i, group in enumerate(optimizer.param_groups):
        if option not in group:
            has = ", ".join(key for key in group if key != "params")
            raise TrainingError(
                f"group {i} of {type(optimizer).__name__} has no {option!r} to scale; its options are {has}"
            )
        for p in group["params"]:
            if id(p) in where:
                name = names.get(id(p), "of another model")
                groups = f"{where[id(p)]} and {i}" if where[id(p)] != i else f"{i}, twice"
                raise TrainingError(f"the parameter {name} is in groups {groups}: give each parameter to one group")
            where[id(p)] = i
    if option == "weight_decay" and not any(group[option] for group in optimizer.param_groups):
        raise TrainingError("every group has a weight decay of 0, so that no factor changes anything; set one above 0")
    return set(where)


def _by_rule(units: Sequence[Unit], layers: Mapping[str, Layer], rule: Rule, ends: Sequence[str]) -> dict[str, str]:
    """Units that the rule leaves at factor 1, and why."""
    records = [replace(record_of(layers[unit.layers[0]]), name=unit.name) for unit in units]
    for glob in rule.include:
        if not any(matches(record.name, glob) for record in records):
            names = listed(record.name for record in records)
            raise TrainingError(f"include {glob!r} matches none of the {len(records)} layers; they are {names}")
    named = {record.name for record in records if any(matches(record.name, glob) for glob in rule.include)}
    taking = [replace(record, kind="linear") if record.name in named else record for record in records]
    try:
        found = cover(taking, inside_blocks=False, exclude=rule.exclude)
    except AllocationError as error:
        raise TrainingError(f"{rule.name} cannot be used here: {error}") from error
    reasons = {layer.name: layer.reason for layer in found.left_out}
    for unit in units:
        small = [too_small((layers[name].rows, layers[name].cols), rule.spec) for name in unit.layers]
        if all(small):
            reasons.setdefault(unit.name, small[0])
    for name, word in zip(ends, ("first", "last"), strict=False):
        if not rule.ends and name not in named:
            reasons.setdefault(name, f"the {word} layer")
    return reasons
