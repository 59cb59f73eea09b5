"""A cutoff that keeps a fixed share of the largest eigenvalues: Hill's estimator."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from spectail.core.cutoffs.base import Array, Cutoff
from spectail.errors import SpecError

SET_BY_HAND = (
    "the tail starts where the cutoff was set by hand; whether it is a power law was not tested, "
    "and WeightWatcher's thresholds of 2 and 6 do not apply."
)


@dataclass(frozen=True)
class TopFraction(Cutoff):
    """The largest ``fraction`` of the eigenvalues: Hill's estimator.

    The number of eigenvalues is rounded to the nearest integer and at least one.
    """

    text = "top:F"
    summary = "the largest fraction F of the eigenvalues"
    meaning = SET_BY_HAND
    smooth = True

    fraction: float

    def __post_init__(self) -> None:
        if not (isinstance(self.fraction, Real) and 0 < self.fraction <= 1):
            raise SpecError(f"top:F needs a fraction above 0 and at most 1, not {self.fraction!r}")

    @property
    def share(self) -> float:
        """``fraction``."""
        return self.fraction

    def start(self, eigenvalues: Array) -> int:
        """Return the index of xmin in the ascending eigenvalues."""
        return eigenvalues.size - max(1, int(self.fraction * eigenvalues.size + 0.5))

    def __str__(self) -> str:
        return f"top:{self.fraction!r}"
