"""Bits: widths that minimise a sum of estimated quantisation errors at a given mean width.

AlphaQ, arXiv 2606.04980.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import numpy as np

from spectail import presets
from spectail.allocation.knapsack import choose
from spectail.allocation.targets.base import Target
from spectail.allocation.units import Array, Units, check_level
from spectail.errors import AllocationError


@dataclass(frozen=True, kw_only=True)
class Bits(Target):
    """A bit width per unit; the budget is the largest allowed mean width over all weights.

    Minimises the sum of numel (alpha0 / alpha) ** gamma Var(W) 4 ** -bits over all assignments of
    ``choices``, where alpha0 is the median alpha: among layers of equal variance, low alphas (heavy
    tails) get more bits. The published code counts modules in place of weights, which is the same
    if all modules have one size.
    """

    name: ClassVar[str] = "bits"
    meaning: ClassVar[str] = "width, larger where alpha is low or the variance high (AlphaQ)"
    budget_meaning: ClassVar[str] = "mean width, met from below"
    inside_blocks: ClassVar[bool] = True

    choices: tuple[int, ...] = presets.ALPHAQ_CHOICES
    """The widths that a unit may get."""
    gamma: float = presets.ALPHAQ_GAMMA
    """How strongly alpha counts beside the variance; 0 ignores alpha."""
    level: str = "layer"

    def __post_init__(self) -> None:
        check_level(self.level)
        # One width may be given as a number.
        given = self.choices if isinstance(self.choices, tuple | list) else (self.choices,)
        if not given or any(not isinstance(b, Integral) or not 1 <= b <= 32 for b in given):
            raise AllocationError(
                f"choices must be whole numbers of bits from 1 to 32, not {self.choices!r}"
            )
        # The dataclass is frozen; the solver relies on ascending widths without repetition.
        object.__setattr__(self, "choices", tuple(sorted({int(b) for b in given})))
        if not (math.isfinite(self.gamma) and self.gamma >= 0):
            raise AllocationError(
                f"gamma must be a finite number of at least 0, not {self.gamma!r}"
            )

    def values(self, units: Units, budget: float) -> tuple[Array, tuple[str, ...]]:
        """Return one width per unit, and how they deviate from the published rule."""
        self._check(units, budget)
        widths, gap = choose(
            self.costs(units), units.numel.astype(np.int64), choices=self.choices, budget=budget
        )
        deviations = []
        if np.unique(units.numel).size > 1:
            deviations.append("Widths are weighted by numel; the published code counts modules.")
        if gap > 0:
            deviations.append(
                f"The solver stopped early: the error sum is at most {gap:.2g} of itself "
                "above the least."
            )
        return widths, tuple(deviations)

    def _check(self, units: Units, budget: float) -> None:
        """Refuse a mean that the choices cannot have, and units of unknown variance."""
        low, high = self.choices[0], self.choices[-1]
        if not low <= budget <= high:
            raise AllocationError(
                f"a mean of {budget!r} bits cannot be had from choices "
                f"{', '.join(map(str, self.choices))}: give {low} to {high}, or other choices"
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

    def costs(self, units: Units) -> Array:
        """Return the estimated error (units, choices) up to one common factor.

        Only ratios matter to the solver. Logarithms keep large powers of alpha from overflowing.
        """
        logs = self.gamma * (np.log(np.median(units.alpha)) - np.log(units.alpha))
        # A variance of 0 (a layer of equal weights) gives -inf here and a cost of 0 below.
        with np.errstate(divide="ignore"):
            logs += np.log(units.numel) + np.log(units.variance)
        largest = logs.max() if np.isfinite(logs.max()) else 0.0
        return np.asarray(
            np.exp(logs - largest)[:, None] * 4.0 ** -np.array(self.choices, dtype=np.float64)
        )
