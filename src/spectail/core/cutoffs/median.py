"""The median: the upper half of the spectrum."""

from __future__ import annotations

from dataclasses import dataclass

from spectail.core.cutoffs.base import Array, Cutoff
from spectail.core.laws import marchenko_pastur_alpha
from spectail.core.windows import MIN_BANDS, Window, disjoint_window

NARROWEST_BAND = 32
"""Windows made smaller for the error bar keep this side where three bands of them can."""

BULK = (
    "with this cutoff alpha describes the shape of the spectrum's bulk and is no claim of a power law. "
    "WeightWatcher's thresholds of 2 and 6 belong to another cutoff and do not apply."
)


@dataclass(frozen=True)
class Median(Cutoff):
    """The upper half: ``xmin = sorted[N // 2]`` (FARMS for images, TempBalance). Measures the shape of the bulk."""

    text = "median"
    summary = "the upper half of the eigenvalues"
    meaning = BULK
    smooth = True

    def start(self, eigenvalues: Array) -> int:
        """Index of xmin in the ascending eigenvalues."""
        return eigenvalues.size // 2

    def null(
        self, window: Window, n_windows: int, weight_var: float, seed: int = 0
    ) -> tuple[float, float]:
        """The mean from the Marchenko-Pastur law, the spread from draws."""
        _, sd = super().null(window, n_windows, weight_var, seed)
        return marchenko_pastur_alpha(min(window) / max(window), fraction=0.5), sd

    def error_window(self, window: Window, rows: int, cols: int) -> Window:
        """Prefer small windows: the bulk looks alike at every size, and more windows give a steadier error bar.

        The window is at most half the run's and fits six times where it stays as wide as
        NARROWEST_BAND. Where the run's own window tiles the matrix exactly it is taken as it is:
        its eigenvalues are known already.
        """
        largest = super().error_window(window, rows, cols)
        if largest == window and rows % window.rows == 0 and cols % window.cols == 0:
            return largest
        smaller = (
            disjoint_window(window, rows, cols, bands, 0.5)
            for bands in range(2 * MIN_BANDS, MIN_BANDS, -1)
        )
        return next((fit for fit in smaller if min(fit) >= NARROWEST_BAND), largest)
