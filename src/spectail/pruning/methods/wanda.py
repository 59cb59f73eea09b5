"""Wanda (arXiv 2306.11695): a weight counts by its size times the norm of its input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spectail.errors import PruneError
from spectail.pruning import scores
from spectail.pruning.masks import smallest, smallest_by_row, smallest_of_groups
from spectail.pruning.methods.base import UNSEEN, Method, Outcome
from spectail.pruning.quotas import Pattern, Quota
from spectail.pruning.statistics import Squares, Statistic


@dataclass(frozen=True)
class Wanda(Method):
    """Prune the smallest |W_ij| times the norm of input j, within each output row.

    With ``variant`` rows may differ in sparsity: each loses up to one common share of its summed
    score (appendix of the paper). The published search for that share stops within 0.001 of the
    sparsity; here the number of zeros is exact.
    """

    statistic = Squares

    variant: bool = False

    @property
    def name(self) -> str:
        """The name on the command line and in reports."""
        return "wanda-variant" if self.variant else "wanda"

    @property
    def meaning(self) -> str:
        """What the method did to the weights, in full sentences."""
        if self.variant:
            return (
                "the weights with the smallest |W| times the norm of their input went, up to one "
                "share of every row's summed score; the others are as they were."
            )
        return (
            "in each output row the weights with the smallest |W| times the norm of their input "
            "went; the others are as they were."
        )

    def check_pattern(self, pattern: Pattern) -> None:
        """Raise PruneError for the variant."""
        if self.variant:
            raise PruneError(
                "wanda-variant lets rows differ, a pattern does not: use wanda with the pattern"
            )

    def apply(self, weights: Tensor, quota: Quota, seen: Statistic | None = None) -> Outcome:
        """Choose the mask of a float matrix (rows, cols) given the squares of its inputs."""
        found, note = _scores(weights, seen)
        if isinstance(quota, Pattern):
            self.check_pattern(quota)
            return Outcome(smallest_of_groups(found, quota.n, quota.m), note=note)
        if self.variant:
            return Outcome(smallest(scores.removal_share(found), quota.count), note=note)
        return Outcome(smallest_by_row(found, quota.count), note=note)


def _scores(weights: Tensor, seen: Statistic | None) -> tuple[Tensor, str]:
    """Return Wanda's scores, or magnitudes and a note if no token reached the matrix."""
    # An expert to which the router sent no token has all scores zero: any mask would do equally.
    if seen is None or not seen.tokens:
        return scores.magnitude(weights), UNSEEN
    return scores.wanda(weights, seen.squares.to(weights.dtype)), ""
