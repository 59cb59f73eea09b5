"""Correlation traps: large eigenvalues that remain when the entries of a layer are shuffled.

Shuffling keeps the entries of a matrix and destroys their arrangement. If the entries are
light-tailed, the shuffled matrix is one of independent entries, whose eigenvalues end at the edge
of Marchenko and Pastur, v (sqrt(rows) + sqrt(cols))^2 with the variance v of the entries. An
eigenvalue beyond the edge, a trap, comes from a few huge entries or from a mean that is not zero.

The null is a layer of independent Gaussian entries of mean 0. Its largest eigenvalue follows the
law of Tracy and Widom, centred and scaled as in Johnstone (Annals of Statistics 29, 2001) and Ma
(Bernoulli 18, 2012). Two corrections count at the sizes of windows: the variance is estimated from
the same entries (Nadler, Journal of Multivariate Analysis 102, 2011), and the largest of several
windows is larger than one window's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from spectail.core.metrics import moments, nearly_largest_eigenvalue
from spectail.core.spectra import window_eigenvalues
from spectail.core.threads import spread
from spectail.core.windows import Window

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]

LEVEL = 0.01
"""Probability that a layer of light-tailed entries has a trap."""
MIN_SIDE = 8
"""Shortest side of a window for which the law of the largest eigenvalue is used."""
_DENSE_SIDE = 128
"""Up to this short side all eigenvalues of a window cost no more than the largest one."""
_REAL = (-1.2065335745820, 1.6077810345810, 0.29346452408)
"""Mean, variance and skewness of the law of Tracy and Widom for real entries (Bornemann, Markov
Processes and Related Fields 16, 2010)."""
_COMPLEX = (-1.7710868074117, 0.8131947928329, 0.224084203610)
"""The same for complex entries."""


class Traps(NamedTuple):
    """What shuffling a layer shows."""

    n: float
    """Number of eigenvalues of the shuffled windows beyond the edge; NaN if there is no edge."""
    ratio: float
    """Largest eigenvalue over the edge: above 1 exactly if there are traps."""
    p: float
    """Probability that a layer of light-tailed entries has as large an eigenvalue."""
    from_mean: bool
    """Whether the mean of the entries alone is large enough for a trap."""


NONE = Traps(math.nan, math.nan, math.nan, from_mean=False)
"""The result for windows that are too small, and for entries that are all equal."""


class LargestLaw(NamedTuple):
    """The law of a window's largest eigenvalue over the variance of its independent entries.

    It is a shifted gamma law, which describes the law of Tracy and Widom to 0.001 if it has the
    same mean, variance and skewness (Chiani, Journal of Multivariate Analysis 129, 2014).
    """

    shape: float
    scale: float
    shift: float

    @classmethod
    def of(cls, window: Window, n_entries: int, *, is_complex: bool = False) -> LargestLaw:
        """Return the law for a window of a matrix whose variance is that of ``n_entries``."""
        half = 0.0 if is_complex else 0.5
        rows, cols = (math.sqrt(side - half) for side in window)
        centre = (rows + cols) ** 2
        width = (rows + cols) * (1 / rows + 1 / cols) ** (1 / 3)
        mean, variance, skewness = _COMPLEX if is_complex else _REAL
        # The eigenvalue over the estimated variance does not depend on that estimate, so its own
        # variance lacks that of the estimate: 2 / n relative to the square for real entries.
        third = skewness * variance**1.5
        variance -= (1 if is_complex else 2) / n_entries * (centre / width) ** 2
        sd = math.sqrt(variance)
        skewness = third / sd**3
        shape, scale = 4 / skewness**2, sd * skewness / 2
        return cls(shape, width * scale, centre + width * (mean - shape * scale))

    def exceeded(self, value: float) -> float:
        """Return the probability that the largest eigenvalue exceeds a value."""
        from scipy.special import gammaincc  # slow to import

        return float(gammaincc(self.shape, max(0.0, (value - self.shift) / self.scale)))

    def edge(self, probability: float) -> float:
        """Return the value that is exceeded with this probability."""
        from scipy.special import gammainccinv  # slow to import

        return self.shift + self.scale * float(gammainccinv(self.shape, probability))


def find_traps(
    matrices: Tensor, window: Window, positions: Sequence[tuple[int, int]], *, seed: int = 0
) -> Traps:
    """Shuffle the entries of each matrix and compare the eigenvalues of its windows with the edge.

    ``matrices`` is a finite real or complex tensor of shape (n, rows, cols). Each matrix is
    shuffled by itself, in one permutation of all of its entries that ``seed`` decides, and cut into
    windows at the same ``positions``. The edge is the value that the largest eigenvalue of all
    windows of all matrices exceeds with probability LEVEL under the null. Windows that overlap are
    counted as if they did not, which makes the p-value too large rather than too small.

    >>> entries = torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(0))
    >>> find_traps(entries, Window(64, 64), [(0, 0), (64, 64)]).n
    0
    >>> entries[0, 3, 5] = 40
    >>> find_traps(entries, Window(128, 128), [(0, 0)]).n
    1
    """
    n_entries = matrices.shape[1] * matrices.shape[2]
    if min(window) < MIN_SIDE:
        return NONE
    law = LargestLaw.of(window, n_entries, is_complex=matrices.is_complex())
    n_windows = len(positions) * matrices.shape[0]
    edge = law.edge(-math.expm1(math.log1p(-LEVEL) / n_windows))
    rng = np.random.default_rng((seed, *matrices.shape))
    count, largest, from_mean = 0, 0.0, False
    for matrix in matrices:
        variance, squares = moments(matrix[None])
        # A mean square of this size above the variance is that of equal entries, within rounding.
        mean_square = squares / n_entries - variance
        if variance <= 1e-12 * mean_square or variance <= np.finfo(np.float64).tiny:
            continue
        values = _beyond(_shuffled(matrix, rng), window, positions, edge * variance) / variance
        count += int((values > edge).sum())
        largest = max(largest, float(values.max()))
        # Above this mean a matrix of rank one leaves the bulk (Benaych-Georges and Nadakuditi 2012)
        from_mean |= mean_square * math.sqrt(math.prod(window)) > variance
    if not largest:
        return NONE
    exceeded = law.exceeded(largest)
    p = 1.0 if exceeded == 1 else -math.expm1(n_windows * math.log1p(-exceeded))
    return Traps(count, largest / edge, p, from_mean=from_mean and count > 0)


def _shuffled(matrix: Tensor, rng: np.random.Generator) -> Tensor:
    """Return a copy of a matrix whose entries are permuted at random."""
    # NumPy has no bfloat16.
    wide = matrix.float() if torch.finfo(matrix.dtype).bits < 32 else matrix.resolve_conj()
    entries = wide.detach().cpu().numpy().flatten()
    rng.shuffle(entries)
    return torch.from_numpy(entries.reshape(matrix.shape)).to(matrix.device)


def _beyond(
    matrix: Tensor, window: Window, positions: Sequence[tuple[int, int]], edge: float
) -> Array:
    """Return the eigenvalues of all windows beyond the edge, and the largest one in any case."""
    if min(window) <= _DENSE_SIDE:
        return window_eigenvalues(matrix[None], window, positions).ravel()

    # An iteration finds the largest eigenvalue. Only a window with a trap needs all of them.
    def largest(corner: tuple[int, int]) -> float:
        top, left = corner
        cut = matrix[top : top + window.rows, left : left + window.cols]
        return nearly_largest_eigenvalue(cut)

    found = np.array(spread(largest, positions))
    traps = [corner for corner, value in zip(positions, found, strict=True) if value > edge]
    if not traps:
        return found
    return window_eigenvalues(matrix[None], window, traps).ravel()
