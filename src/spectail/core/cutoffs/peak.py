"""The cutoff near the histogram's peak, as AlphaPruning and FARMS use it for language models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from spectail.core.cutoffs.base import Array, Cutoff
from spectail.core.cutoffs.median import BULK
from spectail.core.tails import best_ks_start

BINS = 100
"""Bins of the log10 histogram, as published."""


@dataclass(frozen=True)
class HistogramPeak(Cutoff):
    """The least KS distance among xmin near the peak of the histogram of log10 eigenvalues.

    AlphaPruning uses it, and FARMS for language models. Candidates lie in [0.95 peak, 1.5 peak].
    ``legacy_lower_bound`` reproduces the published code, which compares log10(0.95 peak) with the
    eigenvalues themselves, a bound that depends on the scale of the weights.
    """

    text = "peak"
    summary = (
        "the least KS distance among xmin near the peak of the log10 histogram, "
        "as AlphaPruning has it"
    )
    meaning = BULK

    legacy_lower_bound: bool = False

    def start(self, eigenvalues: Array) -> int:
        """Return the index of xmin in the ascending eigenvalues."""
        counts, edges = np.histogram(np.log10(eigenvalues), bins=BINS)
        # The peak is the left edge of the fullest bin, as in the published code.
        peak = 10.0 ** edges[int(np.argmax(counts))]
        # The published code forgot to convert the bound back from log10.
        lowest = math.log10(0.95 * peak) if self.legacy_lower_bound else 0.95 * peak
        first = int(np.searchsorted(eigenvalues, lowest, side="left"))
        last = int(np.searchsorted(eigenvalues, 1.5 * peak, side="right"))
        return best_ks_start(eigenvalues, first, min(last, eigenvalues.size - 1))
