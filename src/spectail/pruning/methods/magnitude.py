"""Magnitude pruning: the smallest weights of a matrix go."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spectail.pruning import scores
from spectail.pruning.masks import smallest, smallest_of_groups
from spectail.pruning.methods.base import Method, Outcome
from spectail.pruning.quotas import Pattern, Quota
from spectail.pruning.statistics import Statistic


@dataclass(frozen=True)
class Magnitude(Method):
    """Prune the smallest |W| of the whole matrix. Needs no calibration text."""

    name = "magnitude"
    meaning = (
        "the smallest weights of each matrix went; the others are as they were. The method reads "
        "no text."
    )

    def apply(self, weights: Tensor, quota: Quota, seen: Statistic | None = None) -> Outcome:
        """Choose the mask of a float matrix (rows, cols)."""
        found = scores.magnitude(weights)
        if isinstance(quota, Pattern):
            return Outcome(smallest_of_groups(found, quota.n, quota.m))
        return Outcome(smallest(found, quota.count))
