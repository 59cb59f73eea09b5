"""Bits: a width or format per layer that minimises a sum of quantisation errors at a given size.

HIGGS, arXiv 2411.17525: the loss of a quantised model grows by about the sum of a_l t_l^2, where
t_l^2 = ||Q(W_l) - W_l||^2 / ||W_l||^2 is the relative error of layer l, and a_l its sensitivity.
AlphaQ, arXiv 2606.04980, estimates the error from alpha and Var(W) instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import numpy as np

from spectail import presets
from spectail.allocation.knapsack import Integers, choose
from spectail.allocation.targets.base import Target
from spectail.allocation.units import Array, Measured, Units, check_level
from spectail.basics.texts import first_names
from spectail.errors import AllocationError

ERRORS = ("relative", "absolute", "variance")
"""What the sum that is minimised counts for each layer.

``relative``: t^2, as measured. ``absolute``: ||Q(W) - W||^2, as measured, which is
numel Var(W) t^2 for weights of mean 0. ``variance``: numel Var(W) 4^-bits, AlphaQ's estimate."""
_WIDEST_MEASURED = 8
"""Beyond it the error falls by 4 with every bit; below about 4 bits it falls faster."""


@dataclass(frozen=True, kw_only=True)
class Bits(Target):
    """A bit width or a format per unit; the budget is the largest allowed mean over all weights.

    Minimises, over all assignments of ``choices``, the sum of (alpha0 / alpha) ** gamma times
    ``error``, where alpha0 is the median alpha: for gamma above 0, low alphas (heavy tails) get
    more bits. Choices are widths, which count as they are, or formats that the analysis measured,
    which count with their scales.
    """

    name: ClassVar[str] = "bits"
    meaning: ClassVar[str] = "width or format, larger where quantisation does more harm"
    budget_meaning: ClassVar[str] = "mean bits per weight, met from below"
    inside_blocks: ClassVar[bool] = True

    choices: tuple[int, ...] | tuple[str, ...] = presets.ALPHAQ_CHOICES
    """The widths, or the names of formats, that a unit may get."""
    error: str = "variance"
    """What is summed: one of ``ERRORS``."""
    gamma: float = presets.ALPHAQ_GAMMA
    """How strongly alpha counts beside the error; 0 ignores alpha."""
    level: str = "layer"

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
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise AllocationError(
                f"gamma must be a finite number of at least 0, not {self.gamma!r}"
            )

    @property
    def widths(self) -> bool:
        """Whether the choices are widths, not formats."""
        return not isinstance(self.choices[0], str)

    def values(self, units: Units, budget: float) -> tuple[Array, tuple[str, ...]]:
        """Return the bits per weight of each unit, and how they deviate from a published rule."""
        sizes, costs = self.options_of(units)
        _check_budget(sizes, costs, units, budget)
        picks, gap = choose(costs, sizes, _limit(int(units.numel.sum()), budget))
        deviations = []
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
        sizes, costs = self.options_of(units)
        same = sizes / units.numel[:, None] == values[:, None]
        return tuple(str(self.choices[i]) for i in np.where(same, costs, np.inf).argmin(axis=1))

    def options_of(self, units: Units) -> tuple[Integers, Array]:
        """Return the size in bits and the error (units, choices) of each choice.

        The error is infinite where a format does not suit a layer. It has one factor common to
        all, which does not matter to the solver.
        """
        shape = (len(units.names), len(self.choices))
        sizes, errors = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        for i, members in enumerate(units.members):
            for layer in members:
                bits, found = self._choices_of(layer)
                sizes[i] += np.rint(bits * layer.numel).astype(np.int64)
                errors[i] += found
        # Logarithms keep large powers of alpha from overflowing; an error of 0 becomes -inf.
        with np.errstate(divide="ignore"):
            logs = np.log(errors)
        logs += self.gamma * (np.log(np.median(units.alpha)) - np.log(units.alpha))[:, None]
        finite = logs[np.isfinite(logs)]
        return sizes, np.exp(logs - (finite.max() if finite.size else 0.0))

    def _choices_of(self, layer: Measured) -> tuple[Array, Array]:
        """Return the bits per weight and the error of each choice for one layer."""
        scale = layer.numel * layer.weight_var if self.error != "relative" else 1.0
        if not math.isfinite(scale):
            raise AllocationError(
                f"bits need the variance of the weights, which {layer.name} lacks"
            )
        if self.error == "variance":
            widths = np.array(self.choices, dtype=np.float64)
            return widths, scale * 4.0**-widths
        known = {found.format: (found.bits, found.error) for found in layer.rounding}
        if not known:
            raise AllocationError(
                f"bits need the errors of quantising {layer.name}, which this analysis lacks: "
                "analyse the model again, exclude the layer, or set error to variance"
            )
        pairs = np.array([_bits_and_error(choice, known) for choice in self.choices])
        return pairs[:, 0], scale * pairs[:, 1]


def _as_choices(given: object) -> tuple[int, ...] | tuple[str, ...]:
    """Return widths, ascending, or names of formats, each once."""
    several = given if isinstance(given, tuple | list) else (given,)
    if several and all(isinstance(choice, str) for choice in several):
        return tuple(dict.fromkeys(several))
    if not several or any(not isinstance(b, Integral) or not 1 <= b <= 32 for b in several):
        raise AllocationError(
            "choices must be whole numbers of bits from 1 to 32, or names of formats, "
            f"not {given!r}"
        )
    return tuple(sorted({int(b) for b in several}))


def _bits_and_error(
    choice: int | str, known: Mapping[str, tuple[float, float]]
) -> tuple[float, float]:
    """Return the bits per weight of a choice and its relative error, infinite if it has none."""
    if isinstance(choice, str):
        return known.get(choice, (0.0, math.inf))
    # Beyond the widest measured integers the error falls by 4 with every bit.
    measured = min(choice, _WIDEST_MEASURED)
    error = known.get(f"int{measured}", (0.0, math.inf))[1]
    return float(choice), error * 4.0 ** (measured - choice)


def _check_budget(sizes: Integers, costs: Array, units: Units, budget: float) -> None:
    """Refuse units without a choice, and a mean that the choices cannot have."""
    possible = np.isfinite(costs)
    without = [
        name for name, any_ in zip(units.names, possible.any(axis=1), strict=True) if not any_
    ]
    if without:
        raise AllocationError(
            f"none of the choices suits {first_names(without, 8)}: its analysis knows none of "
            "these formats, or they need rows of another length; add a format such as int4"
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
