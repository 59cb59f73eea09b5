"""Sparsity: the part of each unit's weights to prune, higher where alpha is high.

AlphaPruning, arXiv 2410.10912.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spectail import presets
from spectail.allocation.budgets import fill
from spectail.allocation.maps import Map, as_map
from spectail.allocation.scores import check_by, needs_alpha, scores_of
from spectail.allocation.targets.base import L, Target
from spectail.allocation.units import Array, Units, check_level, standardized_by_kind
from spectail.errors import AllocationError


@dataclass(frozen=True, kw_only=True)
class Sparsity(Target):
    """A ratio of zeros per unit; the budget is the ratio over all weights that take part.

    Published: s_b = factor_b * S * sum(numel) / sum(numel * factor), over block means, where S is
    the budget. What exceeds ``bounds`` is given to the other units, so the budget holds; the
    published code cuts it off, or lets ratios exceed 1.
    """

    name: ClassVar[str] = "sparsity"
    meaning: ClassVar[str] = "ratio of zeros, higher where alpha is high (AlphaPruning)"
    budget_meaning: ClassVar[str] = "mean ratio over all weights that take part, exact"
    inside_blocks: ClassVar[bool] = True

    map: Map | str = presets.MAPS["alphapruning"]
    level: str = "block"
    bounds: tuple[float, float] = presets.SPARSITY_BOUNDS
    standardize_by_kind: bool = False
    """Whether alphas are compared within each kind (q with q, down with down).

    No published rule does so.
    """
    by: str = "alpha"
    """What the ratios go by: see ``allocation.scores``. ``depth:FORM`` looks at no alpha."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "map", as_map(self.map))
        check_level(self.level)
        check_by(self.by)
        if self.standardize_by_kind and not self.needs_alpha:
            raise AllocationError(
                f"standardize_by_kind compares alphas, and by {self.by} looks at none: leave it out"
            )
        given = tuple(self.bounds) if isinstance(self.bounds, tuple | list) else ()
        if len(given) != 2 or not 0 <= given[0] <= given[1] <= 1:
            raise AllocationError(
                "bounds of sparsity must be (LOW, HIGH), 0 <= LOW <= HIGH <= 1, "
                f"not {self.bounds!r}"
            )
        object.__setattr__(self, "bounds", (float(given[0]), float(given[1])))

    @property
    def needs_alpha(self) -> bool:
        """Whether the ratios go by alpha, among others."""
        return needs_alpha(self.by)

    def prepared(self, layers: Sequence[L]) -> Sequence[L]:
        """Return the layers, with alphas standardized by kind if that is asked for."""
        return standardized_by_kind(layers) if self.standardize_by_kind else layers

    def values(self, units: Units, budget: float) -> tuple[Array, tuple[str, ...]]:
        """Return one ratio per unit, and how they deviate from the published rule."""
        # At 1 every weight would be zero.
        if not 0 <= budget < 1:
            raise AllocationError(f"a sparsity must be at least 0 and below 1, not {budget!r}")
        scores = scores_of(units, self.by)
        factors = as_map(self.map).factors(scores)
        ratios = fill(factors, units.numel, budget=budget, bounds=self.bounds)
        return ratios, self._deviations(units, scores, factors, budget)

    def _deviations(
        self, units: Units, scores: Array, factors: Array, budget: float
    ) -> tuple[str, ...]:
        """Say what the published rule would have done differently."""
        if not np.ptp(scores) > 0:
            return (
                f"All units have one {'alpha' if self.by == 'alpha' else 'score'} and get the "
                "budget; the published rule divides by zero there.",
            )
        share = units.numel / units.numel.sum()
        # The formula of the class, before bounds.
        published = factors * budget / float(share @ factors)
        low, high = self.bounds
        outside = int(((published < low) | (published > high)).sum())
        if not outside:
            return ()
        cut = float(share @ np.clip(published, low, high))
        return (
            f"{outside} of {len(units.names)} units would lie outside {low:g} to {high:g}; "
            "the others take what is cut "
            "off. Cut off and not given back, as in published code, "
            f"the sparsity would be {cut:.4f}.",
        )
