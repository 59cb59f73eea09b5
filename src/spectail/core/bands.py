"""A matrix that is read a band of rows or columns at a time, so that it is never in memory whole.

There are two uses. Of a large layer that is measured in a few windows over the network, only the
bands that these windows lie in are read, each once. Of a layer that would fill the memory, every
band is read, and as often as it is needed: once for each pass over the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from spectail.core.spectra import largest_magnitude, window_eigenvalues
from spectail.core.windows import Window
from spectail.errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]

BAND_ENTRIES = 2**22
"""About how many entries a band has in a pass over the matrix. Larger ones take more time: the
system gives them fresh pages of memory for each read."""


class Bands:
    """One matrix whose rows (``axis`` 0) or columns (``axis`` 1) are read a band at a time.

    ``read`` returns the band from a start to a stop as (1, rows, cols). ``complete`` says that the
    matrix may be read whole and repeatedly: then only one band is in memory at a time. Otherwise
    all that was read stays in memory, and nothing is read twice, also where bands overlap.
    """

    def __init__(
        self,
        rows: int,
        cols: int,
        axis: int,
        read: Callable[[int, int], Tensor],
        *,
        complete: bool = False,
    ) -> None:
        self.shape = (1, rows, cols)
        self.axis, self.complete = axis, complete
        self._read = read
        self._kept: dict[tuple[int, int], Tensor] = {}

    @cached_property
    def dtype(self) -> torch.dtype:
        """Type of the entries as they are read."""
        # A band in memory spares a request.
        band = next(iter(self._kept.values()), None)
        return (self._read(0, 1) if band is None else band).dtype

    def __iter__(self) -> Iterator[Tensor]:
        """Read the whole matrix in bands of about BAND_ENTRIES entries."""
        extent, beside = self.shape[1 + self.axis], self.shape[2 - self.axis]
        size = max(1, BAND_ENTRIES // beside)
        for start in range(0, extent, size):
            yield self._read(start, min(start + size, extent))

    def rows(self, numbers: Sequence[int]) -> Tensor:
        """Return some rows, (len(numbers), cols)."""
        if self.axis == 0:
            return torch.cat([self._read(number, number + 1)[0] for number in numbers])
        return torch.cat([band[0, list(numbers)] for band in self], dim=1)

    def eigenvalues(
        self, window: Window, corners: Sequence[tuple[int, int]], *, exact_zeros: bool = False
    ) -> Array:
        """Return the eigenvalues of windows, as ``spectra.window_eigenvalues`` does.

        Raises:
            SourceError: A weight that was read is NaN or infinite.

        """
        found = np.empty((len(corners), 1, min(window)))
        for start in dict.fromkeys(corner[self.axis] for corner in corners):
            places = [i for i, corner in enumerate(corners) if corner[self.axis] == start]
            band = self._band(start, start + window[self.axis])
            # Corners count from the beginning of the band.
            first = (start, 0) if self.axis == 0 else (0, start)
            inside = [(corners[i][0] - first[0], corners[i][1] - first[1]) for i in places]
            found[places] = window_eigenvalues(band, window, inside, exact_zeros=exact_zeros)
            del band  # or it would be in memory while the next one is read
        return found

    def _band(self, start: int, stop: int) -> Tensor:
        """Return a band; what of it is in memory is not read again."""
        gaps = self._gaps(start, stop)
        if gaps and self.complete:
            self._kept.clear()
            gaps = [(start, stop)]
        for gap in gaps:
            piece = self._read(*gap)
            if not math.isfinite(largest_magnitude(piece)):
                raise SourceError("some of the weights that were read are NaN or infinite")
            self._kept[gap] = piece
        pieces = []
        for (first, last), kept in sorted(self._kept.items(), key=lambda item: item[0]):
            begin, end = max(start, first), min(stop, last)
            if begin < end:
                pieces.append(kept.narrow(self.axis + 1, begin - first, end - begin))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=self.axis + 1)

    def _gaps(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return where the parts of a band begin and end that are not in memory."""
        gaps, at = [], start
        for first, last in sorted(self._kept):
            if last <= at or first >= stop:
                continue
            if first > at:
                gaps.append((at, first))
            at = last
        return [*gaps, (at, stop)] if at < stop else gaps


def bands_of(matrices: Tensor | Bands) -> Iterable[Tensor]:
    """Return the bands of a matrix, or the one tensor that holds all matrices of a layer."""
    return matrices if isinstance(matrices, Bands) else (matrices,)


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
