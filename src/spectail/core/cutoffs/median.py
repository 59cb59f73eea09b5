"""The median cutoff: the tail is the upper half of the spectrum."""

from __future__ import annotations

from dataclasses import dataclass

from spectail.core.cutoffs.base import Array, Cutoff
from spectail.core.windows import MIN_BANDS, Window, disjoint_window

NARROWEST_BAND = 32
"""Narrowest side of the smaller windows of the error bar, if three bands of this width fit."""

BULK = (
    "with this cutoff alpha describes the shape of the spectrum's bulk and is no claim of a power "
    "law. WeightWatcher's thresholds of 2 and 6 belong to another cutoff and do not apply."
)


@dataclass(frozen=True)
class Median(Cutoff):
    """The upper half, ``xmin = sorted[N // 2]`` (FARMS for images, TempBalance).

    Its alpha measures the shape of the spectrum's bulk.
    """

    text = "median"
    summary = "the upper half of the eigenvalues"
    meaning = BULK
    smooth = True

    @property
    def share(self) -> float:
        """A half."""
        return 0.5

    def start(self, eigenvalues: Array) -> int:
        """Return the index of xmin in the ascending eigenvalues."""
        return eigenvalues.size // 2

    def error_window(self, window: Window, rows: int, cols: int) -> Window:
        """Return a small window, since many windows make the error bar steadier.

        Small windows are possible because the bulk looks alike at every size. The window is at most
        half the run's window and fits six times along each side; if that makes it narrower than
        NARROWEST_BAND, it fits five or four times instead. The run's own window is used if it tiles
        the matrix exactly, because its eigenvalues are known already.
        """
        largest = super().error_window(window, rows, cols)
        if largest == window and rows % window.rows == 0 and cols % window.cols == 0:
            return largest
        smaller = (
            disjoint_window(window, rows, cols, bands, 0.5)
            for bands in range(2 * MIN_BANDS, MIN_BANDS, -1)
        )
        return next((fit for fit in smaller if min(fit) >= NARROWEST_BAND), largest)
