"""Bits: widths that minimise a sum of estimated quantisation errors at a mean width (AlphaQ, arXiv 2606.04980)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import numpy as np

from spectail import presets
from spectail.allocation.knapsack import choose
from spectail.allocation.units import Array, Units, check_level
from spectail.errors import AllocationError


@dataclass(frozen=True, kw_only=True)
class Bits:
    """A bit width per unit; the budget is the mean width over all weights that take part, met from below.

    Minimises sum of numel (alpha0 / alpha) ** gamma Var(W) 4 ** -bits over all assignments of
    ``choices``, alpha0 the median alpha: among layers of equal variance, low alphas (heavy tails)
    get more bits. The published code counts modules in place of weights; on modules of one size
    that is the same.
    """

    name: ClassVar[str] = "bits"
    inside_blocks: ClassVar[bool] = True

    choices: tuple[int, ...] = presets.ALPHAQ_CHOICES
    gamma: float = presets.ALPHAQ_GAMMA
    level: str = "layer"

    def __post_init__(self) -> None:
        check_level(self.level)
        given = self.choices if isinstance(self.choices, tuple | list) else (self.choices,)
        if not given or any(not isinstance(b, Integral) or not 1 <= b <= 32 for b in given):
            raise AllocationError(
                f"choices must be whole numbers of bits from 1 to 32, not {self.choices!r}"
            )
        object.__setattr__(self, "choices", tuple(sorted({int(b) for b in given})))
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise AllocationError(
                f"gamma must be a finite number of at least 0, not {self.gamma!r}"
            )

    def values(self, units: Units, budget: float) -> tuple[Array, tuple[str, ...]]:
        """One width per unit, and where they depart from the published rule."""
        low, high = self.choices[0], self.choices[-1]
        if not low <= budget <= high:
            raise AllocationError(
                f"a mean of {budget!r} bits cannot be had from choices {', '.join(map(str, self.choices))}: "
                f"give {low} to {high}, or other choices"
            )
        if not np.isfinite(units.variance).all():
            without = [
                name
                for name, v in zip(units.names, units.variance, strict=True)
                if not math.isfinite(v)
            ]
            raise AllocationError(
                f"bits need the variance of the weights, which {', '.join(without[:8])} have not"
            )
        widths, gap = choose(
            self.costs(units), units.numel.astype(np.int64), choices=self.choices, budget=budget
        )
        deviations = []
        if np.unique(units.numel).size > 1:
            deviations.append("Widths are weighted by numel; the published code counts modules.")
        if gap > 0:
            deviations.append(
                f"The solver stopped early: the error sum is at most {gap:.2g} of itself above the least."
            )
        return widths, tuple(deviations)

    def costs(self, units: Units) -> Array:
        """Estimated error (units, choices), up to one common factor: only ratios matter, and no power overflows."""
        logs = self.gamma * (np.log(np.median(units.alpha)) - np.log(units.alpha))
        with np.errstate(divide="ignore"):
            logs += np.log(units.numel) + np.log(units.variance)
        largest = logs.max() if np.isfinite(logs.max()) else 0.0
        return np.asarray(
            np.exp(logs - largest)[:, None] * 4.0 ** -np.array(self.choices, dtype=np.float64)
        )
