"""A matrix of which only those bands of rows or columns are read that windows lie in.

For models that are read over the network: with a tolerance, a large layer is measured in a few
windows, and the rest of it need not be fetched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.spectra import largest_magnitude, window_eigenvalues
from spectail.core.windows import Window
from spectail.errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]


class Bands:
    """One matrix whose rows (``axis`` 0) or columns (``axis`` 1) are read a band at a time.

    ``read`` returns the band from a start to a stop as (1, rows, cols). Bands stay in memory, so
    none is read twice.
    """

    def __init__(self, rows: int, cols: int, axis: int, read: Callable[[int, int], Tensor]) -> None:
        self.shape = (1, rows, cols)
        self._axis, self._read = axis, read
        self._kept: dict[tuple[int, int], Tensor] = {}

    def eigenvalues(
        self, window: Window, corners: Sequence[tuple[int, int]], *, exact_zeros: bool = False
    ) -> Array:
        """Return the eigenvalues of windows, as ``spectra.window_eigenvalues`` does.

        Raises:
            SourceError: A weight that was read is NaN or infinite.

        """
        found = np.empty((len(corners), 1, min(window)))
        for start in dict.fromkeys(corner[self._axis] for corner in corners):
            places = [i for i, corner in enumerate(corners) if corner[self._axis] == start]
            band = self._band(start, start + window[self._axis])
            # Corners count from the beginning of the band.
            first = (start, 0) if self._axis == 0 else (0, start)
            inside = [(corners[i][0] - first[0], corners[i][1] - first[1]) for i in places]
            found[places] = window_eigenvalues(band, window, inside, exact_zeros=exact_zeros)
        return found

    def _band(self, start: int, stop: int) -> Tensor:
        """Return a band, read only if it lies in none that has been read."""
        for (first, last), kept in self._kept.items():
            if first <= start and stop <= last:
                return kept.narrow(self._axis + 1, start - first, stop - start)
        band = self._read(start, stop)
        if not math.isfinite(largest_magnitude(band)):
            raise SourceError("some of the weights that were read are NaN or infinite")
        self._kept[start, stop] = band
        return band


def eigenvalues_of(
    matrices: Tensor | Bands,
    window: Window,
    corners: Sequence[tuple[int, int]],
    *,
    exact_zeros: bool = False,
) -> Array:
    """Return the eigenvalues of windows of matrices in memory, or of one that is read in bands."""
    if isinstance(matrices, Bands):
        return matrices.eigenvalues(window, corners, exact_zeros=exact_zeros)
    return window_eigenvalues(matrices, window, corners, exact_zeros=exact_zeros)
