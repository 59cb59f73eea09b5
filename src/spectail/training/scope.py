"""Find the units that take part in a rule, and the reason why others do not.

It depends on the rule (kinds and globs), the optimizer (which parameters it holds) and the model
(what is frozen).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import nn

from spectail.allocation.coverage import Candidate, cover
from spectail.basics.texts import first_names
from spectail.core.measure import too_small
from spectail.errors import AllocationError, TrainingError
from spectail.models.naming.select import matches
from spectail.models.source import Layer
from spectail.training.parameter_units import Unit, first_and_last, units_of
from spectail.training.rules import Rule
from spectail.training.wrappers import Optimizers

SHOWN = 4
"""The most names that a message lists; the others are counted."""
FROZEN, NOT_HELD = "frozen", "not in the optimizer"


@dataclass(frozen=True)
class Scope:
    """The units that are balanced, and those that are not."""

    units: tuple[Unit, ...]
    """The units that are balanced, in the model's order."""
    left_out: Mapping[str, str]
    """The reason for each other unit."""
    forgotten: tuple[str, ...]
    """Units that could take part and are not frozen, but are in no group of the optimizer."""
    candidates: tuple[Unit, ...]
    """All units that the rule selects, including those that are not trained now because they are
    frozen or not in the optimizer.
    """

    @property
    def unit_of(self) -> dict[int, str]:
        """Map the ``id`` of each parameter, in a group or not yet, to the name of its unit."""
        return {id(p): unit.name for unit in self.units for p in unit.parameters}

    @property
    def waiting(self) -> list[str]:
        """The names of the candidates that do not take part now."""
        taking = {unit.name for unit in self.units}
        return [unit.name for unit in self.candidates if unit.name not in taking]

    def narrowed(self, names: Collection[str]) -> Scope:
        """Return a scope of the candidates with these names, trained now or not."""
        reasons = {name: reason for name, reason in self.left_out.items() if name not in names}
        # Only until the next measurement, which looks at the model again.
        later = "not in the state that was loaded; taken in at the next measurement"
        reasons |= {unit.name: later for unit in self.units if unit.name not in names}
        return replace(
            self, units=tuple(u for u in self.candidates if u.name in names), left_out=reasons
        )


def find_scope(
    model: nn.Module, layers: Sequence[Layer], optimizers: Optimizers, rule: Rule
) -> Scope:
    """Choose the units that take part.

    There may be none as long as some are frozen, because those can be unfrozen later.

    Raises:
        TrainingError: a glob changes nothing, the optimizer belongs to another model, no unit takes
            part, a parameter is in two groups, or a group cannot be scaled.

    """
    without_value = _check_groups(optimizers, model, rule.option)
    held = optimizers.held()
    units = units_of(model, layers)
    if not held & {id(p) for unit in units for p in unit.parameters}:
        first = next(name for name, _ in model.named_parameters())
        raise TrainingError(
            f"the optimizer holds none of the model's parameters (such as {first}): build it from "
            "the parameters of this very model, after anything that replaces them; one that steps "
            "copies of them (DeepSpeed, apex) cannot be balanced"
        )
    reasons = _by_rule(
        units, {layer.name: layer for layer in layers}, rule, first_and_last(model, units)
    )
    candidates = tuple(unit for unit in units if unit.name not in reasons)
    for unit in candidates:
        if reason := _not_trained(unit, held, without_value, rule.option):
            reasons[unit.name] = reason
    chosen = tuple(unit for unit in units if unit.name not in reasons)
    # Frozen units may join later; without any, the rule can never act on this model.
    if not chosen and FROZEN not in (reasons[unit.name] for unit in candidates):
        why = listed([f"{name} ({reason})" for name, reason in reasons.items()])
        raise TrainingError(
            f"no layer takes part in {rule.name}: {why}; name those that should with include"
        )
    forgotten = tuple(unit.name for unit in candidates if reasons.get(unit.name) == NOT_HELD)
    return Scope(chosen, reasons, forgotten, candidates)


def trained_now(model: nn.Module, optimizers: Optimizers, option: str) -> tuple[Any, ...]:
    """Return a value that changes if the units that take part may have changed.

    It holds what can change during training: frozen parameters, the optimizer's parameters, and
    groups without weight decay.
    """
    held = optimizers.held()
    # A learning rate of 0 is part of a schedule; a weight decay of 0 is a choice for that group.
    decays = option == "weight_decay"
    zero = tuple(
        i
        for i, (*_, group) in enumerate(optimizers.groups())
        if decays and _is_zero(group.get(option))
    )
    return zero, tuple((id(p), p.requires_grad, id(p) in held) for p in model.parameters())


def listed(names: Iterable[str]) -> str:
    """Return the first names as text, and how many more there are."""
    return first_names(names, SHOWN)


def _not_trained(
    unit: Unit, held: Collection[int], without_value: Collection[int], option: str
) -> str:
    """Return why a factor would not act on a unit that the rule selects; empty if it would."""
    if not any(p.requires_grad for p in unit.weights):
        return FROZEN
    if not any(id(p) in held for p in unit.weights):
        return NOT_HELD
    if option == "weight_decay" and all(
        id(p) in without_value for p in unit.weights if id(p) in held
    ):
        return "its group has a weight decay of 0"
    return ""


def _check_groups(optimizers: Optimizers, model: nn.Module, option: str) -> set[int]:
    """Refuse groups that cannot be scaled; returns the ``id`` of parameters whose option is 0."""
    names = {id(p): name for name, p in model.named_parameters()}
    where: dict[tuple[int, int], int] = {}
    zero: set[int] = set()
    any_value = False
    for optimizer, i, group in optimizers.groups():
        _check_group(optimizer, i, group, option)
        any_value = any_value or not _is_zero(group[option])
        for p in group["params"]:
            # Torch checks this in add_param_group only; a list that is changed directly gets past
            # it.
            if (id(optimizer), id(p)) in where:
                name = names.get(id(p), "of another model")
                first = where[id(optimizer), id(p)]
                groups = f"{first} and {i}" if first != i else f"{i}, twice"
                raise TrainingError(
                    f"the parameter {name} is in groups {groups}: give each parameter to one group"
                )
            where[id(optimizer), id(p)] = i
            zero |= {id(p)} if _is_zero(group[option]) else set()
    if option == "weight_decay" and not any_value:
        raise TrainingError(
            "every group has a weight decay of 0, so that no factor changes anything; set one "
            "above 0"
        )
    return zero


def _check_group(optimizer: Any, i: int, group: Mapping[str, Any], option: str) -> None:
    """Refuse a group whose ``option`` is missing or is no number to scale."""
    kind = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TrainingError(
            "LBFGS takes one step along all parameters at once: it has no rates per layer to "
            "balance"
        )
    if option not in group:
        has = ", ".join(key for key in group if key != "params")
        raise TrainingError(
            f"group {i} of {kind} has no {option!r} to scale; its options are {has}"
        )
    if isinstance(group[option], bool) or not isinstance(group[option], Real | torch.Tensor):
        raise TrainingError(
            f"group {i} of {kind} has {option!r} {group[option]!r}, where a number is needed "
            "to scale: give it one (for Adafactor of transformers: relative_step=False)"
        )


def _is_zero(value: Any) -> bool:
    """Whether a number is 0; False on an accelerator, which reading it would make wait."""
    if isinstance(value, torch.Tensor) and value.device.type != "cpu":
        return False
    return isinstance(value, Real | torch.Tensor) and not value


def _candidate(unit: Unit, layer: Layer) -> Candidate:
    """Describe a unit by its first layer, under the unit's own name."""
    return Candidate(unit.name, layer.kind, layer.rows, layer.cols, no_weight=layer.no_weight)


def _by_rule(
    units: Sequence[Unit], layers: Mapping[str, Layer], rule: Rule, ends: Sequence[str]
) -> dict[str, str]:
    """Units that the rule leaves at factor 1, and why."""
    candidates = [_candidate(unit, layers[unit.layers[0]]) for unit in units]
    for glob in rule.include:
        if not any(matches(unit.name, glob) for unit in units):
            names = listed(unit.name for unit in units)
            raise TrainingError(
                f"include {glob!r} matches none of the {len(units)} layers; they are {names}"
            )
    # What the user names takes part whatever its kind.
    named = {u.name for u in units if any(matches(u.name, glob) for glob in rule.include)}
    try:
        found = cover(candidates, inside_blocks=False, exclude=rule.exclude, always=named)
    except AllocationError as error:
        raise TrainingError(f"{rule.name} cannot be used here: {error}") from error
    reasons = {layer.name: layer.reason for layer in found.left_out}
    for unit in units:
        small = [
            too_small((x.rows, x.cols), rule.spec, x.n_matrices)
            for x in map(layers.__getitem__, unit.layers)
        ]
        if all(small):
            reasons.setdefault(unit.name, small[0])
    # As published: TempBalance leaves both at the base rate.
    for name, word in zip(ends, ("first", "last"), strict=False):
        if not rule.include_first_last and name not in named:
            reasons.setdefault(name, f"the {word} layer")
    return reasons
