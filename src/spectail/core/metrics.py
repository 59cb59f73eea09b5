"""Numbers that describe the whole matrices of a layer, whatever windows alpha was measured on.

Eigenvalues are squared singular values. A layer of several matrices (kernel slices) has the largest
eigenvalue of any of them and the sum over all of them. Names follow WeightWatcher's columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
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
"""Up to this short side a full solve is as quick as an iteration."""
_GRAM_SIDE = 1024
"""Up to this short side the Gram matrix is formed once; beyond, each step multiplies by matrix and
transpose."""
_SAFE_EXPONENT = 24
"""Weights of 2^-24 to 2^24 at most are not scaled first: their squares are far inside the range of
float32."""
_PIECE = 2**20
"""Entries that are turned into float64 at a time."""


def moments(matrices: Tensor) -> tuple[float, float]:
    """(variance of the entries, sum of their squares), in float64 whatever the stored precision.

    The sum of squares is the sum of all eigenvalues (the squared Frobenius norm). Read in pieces,
    so that no second copy of a large tensor is made. The variance of complex entries is E|w -
    mean|^2. Sums are taken of the differences to the mean of the first piece: nothing cancels where
    the mean is large.
    """
    flat = matrices.reshape(-1)
    count, total, squares = flat.numel(), 0.0 + 0.0j, 0.0
    shift = flat[:_PIECE].to(_wide(flat)).mean()
    buffer = torch.empty(min(count, _PIECE), dtype=_wide(flat), device=flat.device)
    for piece in torch.split(flat, _PIECE):
        values = buffer[: piece.numel()].copy_(piece).sub_(shift)
        total += complex(values.sum().item())
        squares += float(_squared(values))
    offset = complex(shift.item())
    mean = total / count
    variance = max(0.0, squares / count - abs(mean) ** 2)
    return variance, count * (variance + abs(mean + offset) ** 2)


def largest_eigenvalue(matrices: Tensor) -> float:
    """The largest squared singular value of any of the matrices, to about 1e-7 relative.

    By Lanczos iteration from a fixed start vector (ARPACK through SciPy), in float64.
    """
    if min(matrices.shape[1:]) <= _DENSE_SIDE:
        norms = [
            torch.linalg.matrix_norm(batch.to(_wide(batch)), 2).max()
            for batch in torch.split(matrices, 64)
        ]
        return float(torch.stack(norms).max()) ** 2
    magnitude = largest_magnitude(matrices)
    return max(_lanczos(matrix, magnitude) for matrix in matrices) if magnitude else 0.0


def entropy(eigenvalues: Array) -> float:
    """Matrix entropy in [0, 1]: -sum(p ln p) / ln(rank) with p the eigenvalues divided by their sum; NaN at rank 1."""
    shares = eigenvalues[eigenvalues > 0] / eigenvalues.sum()
    if shares.size < 2:
        return math.nan
    return float(-(shares * np.log(shares)).sum() / math.log(shares.size))


def _lanczos(matrix: Tensor, magnitude: float) -> float:
    """Iterate in float32 where the weights are no finer, then take the Rayleigh quotient of the vector in float64.

    The quotient's error is the square of the vector's: float32 halves the cost and loses nothing
    that shows.
    """
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.mT
    side, exponent = matrix.shape[0], math.frexp(magnitude)[1]
    exponent = 0 if abs(exponent) <= _SAFE_EXPONENT else exponent
    fine = matrix.dtype in (torch.float64, torch.complex128)
    working = matrix.dtype if fine else torch.promote_types(matrix.dtype, torch.float32)
    scaled = matrix.to(working) if exponent == 0 else matrix.to(working) * 2.0**-exponent
    if not scaled.any():
        return 0.0
    pieces = torch.split(scaled, max(1, _PIECE // side), dim=1)
    multiply = (
        _gram_product(piece.cpu() for piece in pieces)
        if side <= _GRAM_SIDE
        else _two_products(scaled)
    )
    start = (
        np.random.default_rng(0)
        .standard_normal(side)
        .astype(torch.empty(0, dtype=working).numpy().dtype)
    )
    operator = LinearOperator((side, side), matvec=multiply, dtype=start.dtype)
    _, vectors = eigsh(
        operator, k=1, which="LA", v0=start, tol=1e-10 if fine else 1e-5, maxiter=50 * side
    )
    top = torch.from_numpy(vectors[:, 0]).to(matrix.device, _wide(matrix))
    image = sum(float(_squared(piece.mH.to(top.dtype) @ top)) for piece in pieces)
    return math.ldexp(image / float(_squared(top)), 2 * exponent)


def _gram_product(pieces: Iterable[Tensor]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """The map v -> (A A^H) v, the Gram matrix formed once; by NumPy, which takes half the work where A is real.

    ``pieces`` are the columns of A, some at a time.
    """
    gram = sum(piece.numpy() @ piece.mH.resolve_conj().numpy() for piece in pieces)
    return lambda vector: gram @ vector.reshape(-1)


def _two_products(scaled: Tensor) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """The map v -> A (A^H v)."""

    def multiply(vector: NDArray[Any]) -> NDArray[Any]:
        v = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1))).to(
            scaled.device, scaled.dtype
        )
        product: NDArray[Any] = (scaled @ (scaled.mH @ v)).cpu().numpy()
        return product

    return multiply


def _squared(values: Tensor) -> Tensor:
    """Sum of squared magnitudes."""
    return torch.vdot(values, values).real


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64
