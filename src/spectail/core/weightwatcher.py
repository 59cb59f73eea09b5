"""WeightWatcher's estimator, to reproduce its numbers (version 0.7.7).

Whole matrices, singular values by SVD where it matters, and one power-law fit. It differs from the
default estimator in these points:

- The eigenvalues of a convolution are multiplied by 0.5 (its option ``conv2d_norm``).
- Eigenvalues up to 1e-5 take no part in the fit, whatever the scale of the weights.
- A layer is measured if it has 8 eigenvalues or more over all of its matrices.
- Fewer than 20 eigenvalues are fitted by another formula; see ``small_sample_fit``.
- Norms, ranks and entropy come from all eigenvalues, small ones included.
- The eigenvalue that makes the product of the ERG condition less than 1 is counted too.
- Tied weights count once for every module that uses them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.bands import Bands, eigenvalues_of
from spectail.core.cutoffs import Cutoff, KSMinimum
from spectail.core.farms import Farms, Positions
from spectail.core.spec import Spec
from spectail.core.spectra import numerical_zeros
from spectail.core.tail_fit import TailFit
from spectail.core.tails import PowerLaw
from spectail.core.windows import Window

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]

MIN_EIGENVALUES = 8
"""Fewest eigenvalues of a layer that is measured (its ``min_evals``)."""
THRESHOLD = 1e-5
"""Eigenvalues up to this size take no part in the fit (its ``EVALS_THRESH``)."""
SMALL_SAMPLE = 20
"""With fewer eigenvalues ``small_sample_fit`` is used."""
SHORTEST_TAIL = 8
"""Fewest eigenvalues of a tail that ``small_sample_fit`` tries."""


class WeightWatcher(Farms):
    """WeightWatcher's procedure: overrides of the steps in which it differs from the default."""

    convolution_factor = 0.5
    floor_words = f"{THRESHOLD:g}"
    counts_tied = True

    def too_small(self, shape: tuple[int, int], spec: Spec, n_matrices: int = 1) -> str:
        """Return why the matrices have too few eigenvalues, or an empty string."""
        count = min(shape) * n_matrices
        if count >= MIN_EIGENVALUES:
            return ""
        return f"too small: {count} eigenvalues, WeightWatcher needs at least {MIN_EIGENVALUES}"

    def solve(
        self, matrices: Tensor | Bands, window: Window, positions: Positions, spec: Spec
    ) -> tuple[Positions, Array]:
        """Return the eigenvalues; those that a Gram matrix cannot resolve come from an SVD."""
        taken, found = super().solve(matrices, window, positions, spec)
        # The SVD takes twice the time, and most layers have full rank.
        if numerical_zeros(found, window).any():
            found = eigenvalues_of(matrices, window, taken, exact_zeros=True)
        return taken, found

    def zeros(self, found: Array, window: Window) -> NDArray[np.bool_]:
        """Mark the eigenvalues that the fit leaves out."""
        return found <= THRESHOLD

    def pooled(self, found: Array, window: Window) -> TailFit:
        """Pool the eigenvalues, and count the rank as ``numpy.linalg.matrix_rank`` does."""
        fit = super().pooled(found, window)
        values = np.sqrt(np.maximum(found, 0.0))
        floor = max(window) * np.finfo(np.float64).eps
        # WeightWatcher counts the loss matrix by matrix, and the rank in the pool of all of them.
        lost = int((values <= floor * values.max(axis=-1, keepdims=True)).sum())
        rank = int((values > floor * values.max()).sum())
        return replace(fit, rank=rank, rank_loss=lost)

    def tail(self, eigenvalues: Array, cutoff: Cutoff) -> PowerLaw:
        """Fit the tail, by another formula if there are few eigenvalues."""
        if isinstance(cutoff, KSMinimum) and 1 < eigenvalues.size < SMALL_SAMPLE:
            return small_sample_fit(eigenvalues)
        return super().tail(eigenvalues, cutoff)

    def with_tail(self, fit: TailFit, spec: Spec, variance: float, *, is_complex: bool) -> TailFit:
        """Fit the tail of the eigenvalues above the threshold, and add the null."""
        if not fit.eigenvalues.size:
            reason = f"no eigenvalue is above {THRESHOLD:g}, WeightWatcher's threshold"
            return replace(fit, status="failed", reason=reason)
        return super().with_tail(fit, spec, variance, is_complex=is_complex)

    def spectrum(self, fit: TailFit) -> Array:
        """Return all eigenvalues, those that the fit leaves out included, ascending."""
        return np.concatenate([np.maximum(fit.left_out, 0.0), fit.eigenvalues])

    def erg_count(self, fit: TailFit) -> int:
        """Return ``detX_num``, which includes the eigenvalue that makes the product less than 1."""
        return min(super().erg_count(fit) + 1, fit.eigenvalues.size + fit.n_zero)

    def norms(
        self,
        fit: TailFit,
        matrices: Tensor | Bands,
        *,
        convolution: bool = False,
        rough: bool = False,
    ) -> tuple[float, float]:
        """Return the largest and the sum of all eigenvalues, scaled as the fit's."""
        spectrum = self.spectrum(fit)
        if not spectrum.size:
            return super().norms(fit, matrices)
        return float(spectrum[-1]), float(spectrum.sum())


def small_sample_fit(eigenvalues: Array) -> PowerLaw:
    """Fit the tail of fewer than 20 ascending positive eigenvalues as WeightWatcher does.

    ``alpha = 1 + (n - 1) / sum(ln(x_i / xmin))``, which has no bias for a known xmin. Of all tails
    of at least 8 eigenvalues the one with the least KS distance is taken; fewer than 8 eigenvalues
    are one tail. (WeightWatcher also computes a score that favours long tails, and then goes by the
    distance.)
    """
    best = PowerLaw(math.inf, float(eigenvalues[0]), math.inf, eigenvalues.size)
    for start in range(max(1, eigenvalues.size - SHORTEST_TAIL + 1)):
        tail = eigenvalues[start:]
        total = float(np.log(tail / tail[0]).sum())
        # Equal eigenvalues have no exponent.
        if total <= 1e-12:
            continue
        alpha = 1 + (tail.size - 1) / total
        fitted = 1 - (tail / tail[0]) ** (1 - alpha)
        distance = float(np.abs(fitted - np.arange(tail.size) / tail.size).max())
        if distance < best.ks:
            best = PowerLaw(alpha, float(tail[0]), distance, tail.size)
    return best
