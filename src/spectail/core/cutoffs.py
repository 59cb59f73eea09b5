"""Cutoffs: the rule that says where the tail of a spectrum starts.

Every cutoff gets the eigenvalues sorted ascending and positive, and gives the index of ``xmin`` among them; the tail
is everything at or above xmin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.tails import best_ks_start
from spectail.errors import SpecError

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Median:
    """The upper half: ``xmin = sorted[N // 2]`` (FARMS for images, TempBalance). Measures the shape of the bulk."""

    def start(self, eigenvalues: Array) -> int:
        """Index of xmin in the ascending eigenvalues."""
        return eigenvalues.size // 2

    def __str__(self) -> str:
        return "median"


@dataclass(frozen=True)
class KSMinimum:
    """The xmin whose fit has the least Kolmogorov-Smirnov distance (Clauset et al. 2009; WeightWatcher)."""

    def start(self, eigenvalues: Array) -> int:
        """Index of xmin in the ascending eigenvalues."""
        return best_ks_start(eigenvalues, 0, eigenvalues.size - 1)

    def __str__(self) -> str:
        return "ks"


_BINS = 100
"""Bins of the log10 histogram, as published."""


@dataclass(frozen=True)
class HistogramPeak:
    """The least KS distance among xmin near the peak of the log10 histogram (AlphaPruning; FARMS for LLMs).

    Candidates lie in [0.95 peak, 1.5 peak]. ``legacy_lower_bound`` reproduces the published code, which compares
    log10(0.95 peak) with the eigenvalues themselves: a bound that depends on the scale of the weights.
    """

    legacy_lower_bound: bool = False

    def start(self, eigenvalues: Array) -> int:
        """Index of xmin in the ascending eigenvalues."""
        counts, edges = np.histogram(np.log10(eigenvalues), bins=_BINS)
        peak = 10.0 ** edges[int(np.argmax(counts))]
        lowest = math.log10(0.95 * peak) if self.legacy_lower_bound else 0.95 * peak
        first = int(np.searchsorted(eigenvalues, lowest, side="left"))
        last = int(np.searchsorted(eigenvalues, 1.5 * peak, side="right"))
        return best_ks_start(eigenvalues, first, min(last, eigenvalues.size - 1))

    def __str__(self) -> str:
        return "peak"


@dataclass(frozen=True)
class TopFraction:
    """The largest ``fraction`` of the eigenvalues (rounded to the nearest count, at least one): Hill's estimator."""

    fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise SpecError(f"top:F needs a fraction above 0 and at most 1, not {self.fraction!r}")

    def start(self, eigenvalues: Array) -> int:
        """Index of xmin in the ascending eigenvalues."""
        return eigenvalues.size - max(1, int(self.fraction * eigenvalues.size + 0.5))

    def __str__(self) -> str:
        return f"top:{self.fraction!r}"


@dataclass(frozen=True)
class Fixed:
    """Everything at or above ``xmin``, a squared singular value in the units of the weights squared."""

    xmin: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.xmin) and self.xmin > 0):
            raise SpecError(f"fixed:X needs a positive finite xmin, not {self.xmin!r}")

    def start(self, eigenvalues: Array) -> int:
        """Index of the first eigenvalue at or above xmin (N where there is none)."""
        return int(np.searchsorted(eigenvalues, self.xmin, side="left"))

    def __str__(self) -> str:
        return f"fixed:{self.xmin!r}"


Cutoff: TypeAlias = Median | KSMinimum | HistogramPeak | TopFraction | Fixed


def parse_cutoff(text: str) -> Cutoff:
    """``median``, ``ks``, ``peak``, ``top:F`` or ``fixed:X`` as a Cutoff; anything else is a SpecError."""
    kind, _, number = text.strip().partition(":")
    plain: dict[str, Cutoff] = {"median": Median(), "ks": KSMinimum(), "peak": HistogramPeak()}
    if text.strip() in plain:
        return plain[kind]
    numbered: dict[str, type[TopFraction] | type[Fixed]] = {"top": TopFraction, "fixed": Fixed}
    if kind in numbered:
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if math.isfinite(value):
            return numbered[kind](value)
    raise SpecError(f"cutoff must be median, ks, peak, top:F or fixed:X, not {text!r}")
