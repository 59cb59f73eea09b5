"""Metrics of the whole matrices of a layer, independent of the windows that alpha is measured on.

Eigenvalues are squared singular values. For a layer of several matrices (kernel slices) the largest
eigenvalue is that of any of them, and sums run over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh

from spectail.core.spectra import largest_magnitude

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]

_DENSE_SIDE = 128
"""Up to this short side a dense solver is as fast as an iteration."""
_GRAM_SIDE = 1024
"""Up to this short side the Gram matrix is computed once. Beyond it, each step multiplies by the
matrix and by its transpose."""
_SAFE_EXPONENT = 24
"""Weights between 2^-24 and 2^24 are not scaled first: their squares are far inside the range of
float32."""
_PIECE = 2**20
"""Number of entries that are converted to float64 at a time."""


def moments(matrices: Tensor) -> tuple[float, float]:
    """Return the variance of the entries and the sum of their squares, both in float64.

    The sum of squares is the sum of all eigenvalues (the squared Frobenius norm). The variance of
    complex entries is E|w - mean|^2. The tensor is read in pieces, so no second copy of a large one
    is made. Sums run over differences from the mean of the first piece, so a large mean causes no
    cancellation.
    """
    flat = matrices.reshape(-1)
    count, total, squares = flat.numel(), 0.0 + 0.0j, 0.0
    # Copying every piece into one buffer avoids new memory for each.
    shift = flat[:_PIECE].to(_wide(flat)).mean()
    buffer = torch.empty(min(count, _PIECE), dtype=_wide(flat), device=flat.device)
    for piece in torch.split(flat, _PIECE):
        values = buffer[: piece.numel()].copy_(piece).sub_(shift)
        total += complex(values.sum().item())
        squares += float(_squared(values))
    offset = complex(shift.item())
    mean = total / count
    # Rounding can make the variance of equal weights negative.
    variance = max(0.0, squares / count - abs(mean) ** 2)
    return variance, count * (variance + abs(mean + offset) ** 2)


def largest_eigenvalue(matrices: Tensor) -> float:
    """Return the largest squared singular value of any matrix, to a relative error of about 1e-7.

    Large matrices use Lanczos iteration from a fixed start vector (ARPACK through SciPy).
    """
    # Kernel slices are many and small, so they are solved in stacks of 64.
    if min(matrices.shape[1:]) <= _DENSE_SIDE:
        norms = [
            torch.linalg.matrix_norm(batch.to(_wide(batch)), 2).max()
            for batch in torch.split(matrices, 64)
        ]
        return float(torch.stack(norms).max()) ** 2
    magnitude = largest_magnitude(matrices)
    return max(_lanczos(matrix, magnitude) for matrix in matrices) if magnitude else 0.0


def entropy(eigenvalues: Array) -> float:
    """Return the matrix entropy -sum(p ln p) / ln(rank), between 0 and 1; NaN at rank 1.

    p are the eigenvalues divided by their sum.
    """
    # p ln p tends to 0 with p, so zeros add nothing.
    shares = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    if shares.size < 2:
        return math.nan
    return float(-(shares * np.log(shares)).sum() / math.log(shares.size))


def log_alpha_norm(eigenvalues: Array, alpha: float) -> float:
    """Return log10 of the sum of eigenvalue^alpha over a whole spectrum; NaN without an alpha.

    Martin, Peng and Mahoney, Nature Communications 2021: the log of the alpha-norm, which is the
    sum of s^(2 alpha) over the singular values s.

    >>> round(log_alpha_norm(np.array([1.0, 2.0, 3.0]), 2.0), 4) == round(math.log10(14), 4)
    True
    """
    if not (math.isfinite(alpha) and eigenvalues.size and eigenvalues[-1] > 0):
        return math.nan
    # Relative to the largest, so that no power overflows.
    largest = float(eigenvalues[-1])
    relative = float(((eigenvalues / largest) ** alpha).sum())
    return alpha * math.log10(largest) + math.log10(relative)


def signal_to_noise(eigenvalues: Array, n_zero: int, shape: tuple[int, int]) -> float:
    """Return the signal-to-noise ratio of Spectrum (arXiv 2406.06623), for whole matrices.

    It is the sum of the singular values above an edge, over the sum of the others, over the largest
    one. The edge is that of Marchenko and Pastur, ``s (1 + sqrt(short / long))``, and s is the
    interquartile range of the singular values over 1.349, as in the published code. NaN if
    none but zeros lie at or below the edge (infinite in the published code).

    >>> round(signal_to_noise(np.array([1.0, 2.0, 3.0, 4.0, 10.0]) ** 2, 0, (5, 5)), 4)
    0.5667
    """
    if not eigenvalues.size:
        return math.nan
    # Zeros count for the quartiles: the published code drops none.
    values = np.concatenate([np.zeros(n_zero), np.sqrt(np.sort(eigenvalues))])
    low, high = np.quantile(values, [0.25, 0.75])
    # 1.349 is the interquartile range of a normal distribution, in standard deviations.
    edge = (high - low) / 1.349 * (1 + math.sqrt(min(shape) / max(shape)))
    noise = float(values[values <= edge].sum())
    signal = float(values[values > edge].sum())
    return signal / noise / float(values[-1]) if noise > 0 else math.nan


def _lanczos(matrix: Tensor, magnitude: float) -> float:
    """Return the largest eigenvalue of A A^H: iterate in float32, then refine in float64.

    The result is the Rayleigh quotient of the computed vector. Its error is the square of the
    vector's error, so iterating in float32 halves the cost and loses no digit that matters. Weights
    in float64 are iterated in float64.
    """
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.mT
    scaled, exponent = _in_range(matrix, magnitude)
    # One matrix of a layer may be zero although another is not; Lanczos would divide by zero.
    if not scaled.any():
        return 0.0
    # Blocks of columns, so that no double-precision copy of a large matrix is made.
    pieces = torch.split(scaled, max(1, _PIECE // matrix.shape[0]), dim=1)
    top = torch.from_numpy(_top_vector(scaled, pieces)).to(matrix.device, _wide(matrix))
    # Rayleigh quotient |A^H v|^2 / |v|^2 in double precision; ldexp undoes the scaling.
    image = sum(float(_squared(piece.mH.to(top.dtype) @ top)) for piece in pieces)
    return math.ldexp(image / float(_squared(top)), 2 * exponent)


def _in_range(matrix: Tensor, magnitude: float) -> tuple[Tensor, int]:
    """Return the matrix in at least float32, divided by 2^exponent, and the exponent.

    ``magnitude`` is the largest magnitude of an entry. Extreme weights are scaled so that their
    squares neither overflow nor vanish; a power of two makes this exact.
    """
    exponent = math.frexp(magnitude)[1]
    working = torch.promote_types(matrix.dtype, torch.float32)
    if abs(exponent) <= _SAFE_EXPONENT:
        return matrix.to(working), 0
    return matrix.to(working) * 2.0**-exponent, exponent


def _top_vector(scaled: Tensor, pieces: Sequence[Tensor]) -> NDArray[Any]:
    """Return the eigenvector of A A^H with the largest eigenvalue, by Lanczos iteration.

    ``pieces`` are blocks of columns of A.
    """
    side = scaled.shape[0]
    multiply = (
        _gram_product(piece.cpu() for piece in pieces)
        if side <= _GRAM_SIDE
        else _two_products(scaled)
    )
    # A fixed start vector makes the result reproducible; a random one is almost surely not
    # orthogonal to the eigenvector.
    start = (
        np.random.default_rng(0)
        .standard_normal(side)
        .astype(torch.empty(0, dtype=scaled.dtype).numpy().dtype)
    )
    operator = LinearOperator((side, side), matvec=multiply, dtype=start.dtype)
    # float32 cannot reach a finer tolerance, and the Rayleigh quotient squares the error.
    tolerance = 1e-10 if scaled.dtype in (torch.float64, torch.complex128) else 1e-5
    _, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance, maxiter=50 * side)
    top: NDArray[Any] = vectors[:, 0]
    return top


def _gram_product(pieces: Iterable[Tensor]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return the map v -> (A A^H) v, with the Gram matrix computed once.

    ``pieces`` are blocks of columns of A. NumPy multiplies a real matrix by its own transpose in
    half the work of a general product.
    """
    gram = sum(piece.numpy() @ piece.mH.resolve_conj().numpy() for piece in pieces)
    return lambda vector: gram @ vector.reshape(-1)


def _two_products(scaled: Tensor) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return the map v -> A (A^H v), which never forms the Gram matrix."""

    def multiply(vector: NDArray[Any]) -> NDArray[Any]:
        v = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1))).to(
            scaled.device, scaled.dtype
        )
        product: NDArray[Any] = (scaled @ (scaled.mH @ v)).cpu().numpy()
        return product

    return multiply


def _squared(values: Tensor) -> Tensor:
    """Return the sum of squared magnitudes."""
    return torch.vdot(values, values).real


def _wide(tensor: Tensor) -> torch.dtype:
    """Return the double-precision type for the tensor."""
    return torch.complex128 if tensor.is_complex() else torch.float64
