"""A base value times a factor per unit: what learning rates and weight decays have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spectail.allocation.allocation import LARGEST
from spectail.allocation.budgets import fill
from spectail.allocation.maps import Linear, Map, Step, as_map
from spectail.allocation.targets.base import Target
from spectail.allocation.units import Array, Units, check_level
from spectail.errors import AllocationError


@dataclass(frozen=True, kw_only=True)
class Scaled(Target):
    """The base value, which is the budget, times the map's factor.

    Published maps do not keep the mean; with ``normalize`` the mean weighted by numel is the base
    value.
    """

    quantity: ClassVar[str]
    """What error messages call the value."""
    inside_blocks: ClassVar[bool] = False

    map: Map | str
    level: str = "layer"
    normalize: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "map", as_map(self.map))
        check_level(self.level)

    def values(self, units: Units, budget: float) -> tuple[Array, tuple[str, ...]]:
        """Return one value per unit, and how they deviate from the published rule."""
        if not (math.isfinite(budget) and budget >= 0):
            raise AllocationError(
                f"a base {self.quantity} must be a finite number of at least 0, not {budget!r}"
            )
        values, deviations = self._values(units, budget)
        # Larger ones would come back from no file (``allocation.Value``).
        if not values.max() <= LARGEST:
            raise AllocationError(
                f"the largest {self.quantity} would be {values.max():.3g}, above {LARGEST:g}: "
                "lower the base value, or the range of the map"
            )
        return values, deviations

    def _values(self, units: Units, budget: float) -> tuple[Array, tuple[str, ...]]:
        """Return the values, of whatever size, and the deviations."""
        factors = as_map(self.map).factors(units.alpha)
        deviations = _deviations(as_map(self.map), units.alpha)
        # Published rules multiply and leave the mean where it falls.
        if not self.normalize:
            with np.errstate(over="ignore"):
                return budget * factors, deviations
        values = fill(factors, units.numel, budget=budget, bounds=(0.0, math.inf))
        return values, (
            *deviations,
            f"Normalised: the mean {self.quantity} is the base, the published map's is not.",
        )


def _deviations(how: Map, alphas: Array) -> tuple[str, ...]:
    """Say where published maps have no answer, or one that depends on the order of the layers."""
    if isinstance(how, Linear | Step) and not np.ptp(alphas) > 0:
        return (
            "All units have one alpha and keep the base value; "
            "published code gives the map's low or high end.",
        )
    if isinstance(how, Step) and np.unique(alphas).size < alphas.size:
        return (
            "Units of equal alpha share a step; "
            "published code gives them different ones by position.",
        )
    return ()
