"""The cutoff with the least Kolmogorov-Smirnov (KS) distance between the tail and its fit."""

from __future__ import annotations

from dataclasses import dataclass

from spectail.core.cutoffs.base import Array, Cutoff
from spectail.core.tails import best_ks_start


@dataclass(frozen=True)
class KSMinimum(Cutoff):
    """The xmin whose fit has the least KS distance (Clauset et al. 2009; WeightWatcher)."""

    text = "ks"
    summary = "the xmin with the least Kolmogorov-Smirnov distance, as WeightWatcher has it"
    meaning = (
        "alpha is fitted above the xmin with the smallest KS distance; it is an exponent only "
        "where the tail verdict in the table supports a power law."
    )
    claims_power_law = True
    min_tail = 1  # the search compares tails of every size, small ones too

    def start(self, eigenvalues: Array) -> int:
        """Return the index of xmin in the ascending eigenvalues."""
        # A tail of one eigenvalue has no exponent, so the last index is no candidate.
        return best_ks_start(eigenvalues, 0, eigenvalues.size - 1)
