"""Bits: a width or format per layer that minimises a sum of quantisation errors at a given size.

HIGGS, arXiv 2411.17525: the loss of a quantised model grows by about the sum of a_l t_l^2, where
t_l^2 = ||Q(W_l) - W_l||^2 / ||W_l||^2 is the relative error of layer l, and a_l its sensitivity.
Here a_l is 1 unless sensitivities are given or alpha is to count: a layer's number of weights is
part of the size only. Were it part of the error too (the sum of ||Q(W_l) - W_l||^2, which is
numel Var(W) t^2), then small layers, whose bits cost little, would get no more of them than large
ones.
AlphaQ, arXiv 2606.04980, estimates that sum by numel Var(W) 4^-bits in place of measuring it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, ClassVar

import numpy as np

from spectail import presets
from spectail.allocation.knapsack import Integers, choose
from spectail.allocation.sensitivities import (
    Sensitivities,
    check_sensitivities,
    sensitivities_of,
)
from spectail.allocation.targets.base import Target
from spectail.allocation.units import Array, Measured, Units, check_level
from spectail.basics.texts import first_names
from spectail.errors import AllocationError

ERRORS = ("measured", "variance")
"""The error of a layer: the relative one of its quantised weights, or AlphaQ's estimate."""

_UNMEASURED = (
    "The analysis was made by a version that measures no quantisation errors: they are estimated "
    "from the variance, as in AlphaQ. Analyse the model again for measured ones."
)


@dataclass(frozen=True, kw_only=True)
class Bits(Target):
    """A bit width or a format per unit; the budget is the largest allowed mean over all weights.

    Minimises, over all assignments of ``choices``, the sum of the layers' errors, each times
    (alpha0 / alpha) ** gamma, where alpha0 is the median alpha. Above gamma 0, layers of low alpha
    (heavy tails) get more bits. Choices are widths, which count as they are, or formats of
    ``core.quantisers``, which count with their scales. A width's error is that of rounding to
    nearest in groups of 128 from the least to the largest weight; a format's is its own.
    """

    name: ClassVar[str] = "bits"
    meaning: ClassVar[str] = "width or format, larger where quantisation does more harm"
    budget_meaning: ClassVar[str] = "mean bits per weight, met from below"
    inside_blocks: ClassVar[bool] = True

    choices: tuple[int, ...] | tuple[str, ...] = presets.ALPHAQ_CHOICES
    """The widths, or the names of formats, that a unit may get."""
    error: str = "measured"
    """What is summed: one of ``ERRORS``."""
    gamma: float | None = None
    """How strongly alpha counts beside the error. By default 0, which ignores alpha; for AlphaQ's
    estimate 1, as published."""
    level: str = "layer"
    sensitivities: Mapping[str, float] | None = field(default=None, repr=False, hash=False)
    """The factor a_l of each layer's relative error, as ``st.sensitivities`` measures it with
    noise; by default 1 for all."""

    def __post_init__(self) -> None:
        check_level(self.level)
        # The dataclass is frozen; lists and single values are taken too, and order is no matter.
        object.__setattr__(self, "choices", _as_choices(self.choices))
        if self.error not in ERRORS:
            raise AllocationError(f"error must be one of {', '.join(ERRORS)}, not {self.error!r}")
        if self.error == "variance" and not self.widths:
            raise AllocationError(
                "error variance estimates the error of a width: choose widths such as 2, 3, 4, 8, "
                "or another error"
            )
        if self.gamma is not None and not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise AllocationError(
                f"gamma must be a finite number of at least 0, not {self.gamma!r}"
            )
        if self.sensitivities is not None:
            check_sensitivities(self.sensitivities)
            if self.error == "variance":
                raise AllocationError(
                    "sensitivities weigh relative errors, and error variance is an absolute one: "
                    "leave out one of them"
                )

    @property
    def widths(self) -> bool:
        """Whether the choices are widths, not formats."""
        return not isinstance(self.choices[0], str)

    @property
    def power(self) -> float:
        """The gamma that counts."""
        default = presets.ALPHAQ_GAMMA if self.error == "variance" else 0.0
        return default if self.gamma is None else self.gamma

    def settings(self) -> dict[str, Any]:
        """Return the options as plain JSON values, with the gamma that counts.

        Of sensitivities it is said how they were measured; their file has the numbers.
        """
        given = self.sensitivities
        told = given.describe() if isinstance(given, Sensitivities) else "given"
        own = super().settings() | {"gamma": self.power, "sensitivities": told}
        return own if given is not None else {k: v for k, v in own.items() if k != "sensitivities"}

    def values(self, units: Units, budget: float) -> tuple[Array, tuple[str, ...]]:
        """Return the bits per weight of each unit, and how they deviate from a published rule."""
        if self.error == "measured" and self.widths and not _are_measured(units):
            if self.sensitivities is not None:
                raise AllocationError(
                    "sensitivities weigh measured errors, and the analysis was made by a version "
                    "that measures none: analyse the model again"
                )
            values, told = replace(self, error="variance").values(units, budget)
            return values, (*told, _UNMEASURED)
        if not self.widths:
            self._check_formats(units)
        weights, notes = self._weights(units)
        sizes, costs = self.options_of(units, weights)
        _check_budget(sizes, costs, units, budget)
        picks, gap = choose(costs, sizes, _limit(int(units.numel.sum()), budget))
        deviations = [*notes]
        if self.error == "variance" and np.unique(units.numel).size > 1:
            deviations.append("Widths are weighted by numel; the published code counts modules.")
        if gap > 0:
            deviations.append(
                f"The solver stopped early: the error sum is at most {gap:.2g} of itself "
                "above the least."
            )
        return sizes[np.arange(picks.size), picks] / units.numel, tuple(deviations)

    def formats(self, units: Units, values: Array) -> tuple[str, ...]:
        """Return the format behind each value; of formats of one size, it is the better one."""
        if self.widths:
            return super().formats(units, values)
        sizes, costs = self.options_of(units, self._weights(units)[0])
        same = sizes / units.numel[:, None] == values[:, None]
        return tuple(str(self.choices[i]) for i in np.where(same, costs, np.inf).argmin(axis=1))

    def _check_formats(self, units: Units) -> None:
        """Refuse formats whose errors the analysis does not have."""
        known = {found.format: None for unit in units.members for x in unit for found in x.rounding}
        if not known:
            raise AllocationError(
                "the analysis has no errors of formats: run spectail analyze with "
                "--quantization-errors into the same folder, which measures only what is missing"
            )
        for choice in self.choices:
            if choice not in known:
                raise AllocationError(
                    f"choices must be formats whose errors the analysis has: "
                    f"{', '.join(known)}, not {choice!r}"
                )

    def options_of(self, units: Units, weights: Mapping[str, float]) -> tuple[Integers, Array]:
        """Return the size in bits and the error (units, choices) of each choice.

        ``weights`` are the factors of the layers' errors. The error is infinite where a format does
        not suit a layer. It has one factor common to all, which does not matter to the solver.
        """
        shape = (len(units.names), len(self.choices))
        sizes, errors = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        for i, members in enumerate(units.members):
            for layer in members:
                bits, found = self._choices_of(layer)
                sizes[i] += np.rint(bits * layer.numel).astype(np.int64)
                errors[i] += weights[layer.name] * found
        # Logarithms keep large powers of alpha from overflowing; an error of 0 becomes -inf.
        with np.errstate(divide="ignore"):
            logs = np.log(errors)
        logs += self.power * (np.log(np.median(units.alpha)) - np.log(units.alpha))[:, None]
        finite = logs[np.isfinite(logs)]
        return sizes, np.exp(logs - (finite.max() if finite.size else 0.0))

    def _weights(self, units: Units) -> tuple[Mapping[str, float], tuple[str, ...]]:
        """Return the factor of every layer's error, and notes on replaced ones."""
        layers = [layer for members in units.members for layer in members]
        if self.sensitivities is None:
            return {layer.name: 1.0 for layer in layers}, ()
        return sensitivities_of(layers, self.sensitivities)

    def _choices_of(self, layer: Measured) -> tuple[Array, Array]:
        """Return the bits per weight and the error of each choice for one layer."""
        if self.widths:
            widths = np.array(self.choices, dtype=np.float64)
            if self.error == "variance":
                scale, what = layer.numel * layer.weight_var, "variance"
                errors = 4.0**-widths
            else:
                scale, what = layer.group_range, "range in groups"
                # Errors within a step of range / (2^b - 1) are uniform: step^2 / 12.
                errors = 1 / (12 * (2**widths - 1) ** 2)
            if not math.isfinite(scale):
                raise AllocationError(
                    f"bits need the {what} of the weights, which {layer.name} lacks"
                )
            return widths, scale * errors
        known = {found.format: (found.bits, found.error) for found in layer.rounding}
        pairs = np.array([known.get(str(choice), (0.0, math.inf)) for choice in self.choices])
        return pairs[:, 0], pairs[:, 1]


def _as_choices(given: object) -> tuple[int, ...] | tuple[str, ...]:
    """Return widths, ascending, or names of formats, each once."""
    several = given if isinstance(given, tuple | list) else (given,)
    if several and all(isinstance(choice, str) for choice in several):
        return tuple(dict.fromkeys(several))
    if not several or any(not isinstance(b, Integral) or not 1 <= int(b) <= 32 for b in several):
        raise AllocationError(
            "choices must be whole numbers of bits from 1 to 32, or names of formats, "
            f"not {given!r}"
        )
    return tuple(sorted({int(b) for b in several}))


def _are_measured(units: Units) -> bool:
    """Whether any layer has the number from which the errors of widths follow."""
    return any(math.isfinite(layer.group_range) for unit in units.members for layer in unit)


def _check_budget(sizes: Integers, costs: Array, units: Units, budget: float) -> None:
    """Refuse units without a choice, and a mean that the choices cannot have."""
    possible = np.isfinite(costs)
    without = [units.names[i] for i in np.flatnonzero(~possible.any(axis=1))]
    if without:
        raise AllocationError(
            f"none of the formats suits {first_names(without, 8)}, for k-quants need rows of a "
            "multiple of 256: add another format, such as int4, or exclude these layers"
        )
    total = units.numel.sum()
    low, high = (
        pick(np.where(possible, sizes, empty), axis=1).sum() / total
        for pick, empty in ((np.min, np.iinfo(np.int64).max), (np.max, 0))
    )
    if not low <= budget <= high:
        raise AllocationError(
            f"a mean of {budget!r} bits cannot be had: the choices give {low:g} to {high:g}"
        )


def _limit(total: int, budget: float) -> int:
    """Return the largest size of ``total`` weights whose mean is at most the budget.

    The mean is compared as a float, as a caller would compute it.
    """
    most = math.floor(budget * total) + 1
    # The product may be off by one unit in the last place, either way.
    while most / total > budget:
        most -= 1
    return most
