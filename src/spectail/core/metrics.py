"""Metrics of the whole matrices of a layer, independent of the windows that alpha is measured on.

Eigenvalues are squared singular values. For a layer of several matrices (kernel slices) the largest
eigenvalue is that of any of them, and sums run over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from spectail.core.bands import Bands, bands_of
from spectail.core.spectra import largest_magnitude
from spectail.core.threads import spread

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]

_DENSE_SIDE = 128
"""Up to this short side a dense solver is as fast as an iteration."""
_GRAM_SIDE = 1024
"""Up to this short side the Gram matrix is computed once. Beyond it, each step multiplies by the
matrix and by its transpose."""
_LEAST_STEPS = 20
"""Fewest Lanczos steps for a precise result. If the largest eigenvalues are nearly equal, almost
any vector leaves a small residual; further steps still come closer to the largest of them."""
_LEAST_ROUGH_STEPS = 8
"""The same for a rough result. After two or three steps the residual of the second largest may be
small, by the chance of the start vector; it was up to a quarter too low in drawn matrices."""
ROUGH = 1e-2
"""Residual that is small enough for a rough result. On matrices of independent entries, the hardest
case, it leaves an error of 0.1 % in the median and seldom more than 1 %, on trained layers less."""
CLOSE = 3e-3
"""Residual for a result to 1e-4, seldom 3e-3: the largest eigenvalue of random matrices varies far
more."""
_SAFE_EXPONENT = 24
"""Weights between 2^-24 and 2^24 are not scaled first: their squares are far inside the range of
float32."""
_PIECE = 2**20
"""Number of entries of a block of columns that is converted to float64 at a time."""
_ROUND = 16
"""Gram matrices of blocks that are computed at a time."""
_CACHED = 2**17
"""Number of entries that are summed at a time: few enough to stay in a core's cache."""
_ON_GPU = 2**24
"""The same on a GPU, where every sum makes the CPU wait and memory is faster."""


def moments(matrices: Tensor | Bands) -> tuple[float, float]:
    """Return the variance of the entries and the sum of their squares, both in float64.

    The sum of squares is the sum of all eigenvalues (the squared Frobenius norm). The variance of
    complex entries is E|w - mean|^2. The tensor is read in pieces, so no second copy of a large one
    is made. Sums run over differences from the mean of the first piece, so a large mean causes no
    cancellation.
    """
    count, total, squares = math.prod(matrices.shape), 0.0 + 0.0j, 0.0
    for i, piece in enumerate(_entries(matrices)):
        if i == 0:
            shift = piece.to(_wide(piece)).mean()
            # Copying every piece into one buffer avoids new memory for each.
            buffer = torch.empty(piece.numel(), dtype=_wide(piece), device=piece.device)
        values = buffer[: piece.numel()].copy_(piece).sub_(shift)
        total += complex(values.sum().item())
        squares += float(_squared(values))
    # NaN, infinite, or too large to be squared.
    if not math.isfinite(squares):
        return squares, squares
    offset = complex(shift.item())
    mean = total / count
    # Rounding can make the variance of equal weights negative.
    variance = max(0.0, squares / count - _square(mean))
    return variance, count * (variance + _square(mean + offset))


def _entries(matrices: Tensor | Bands) -> Iterator[Tensor]:
    """Yield all entries as flat pieces of equal size; the last one may be shorter."""
    rest: Tensor | None = None
    for block in bands_of(matrices):
        flat = block.reshape(-1)
        # Pieces do not end where bands do, so that sums over rows have the same bits without bands.
        flat = flat if rest is None else torch.cat([rest, flat])
        size = _ON_GPU if flat.is_cuda else _CACHED
        whole = flat.numel() // size * size
        yield from torch.split(flat[:whole], size) if whole else ()
        rest = flat[whole:]
    if rest is not None and rest.numel():
        yield rest


def _square(number: complex) -> float:
    """Return |number|^2; Python's power raises an error where this gives infinity."""
    return number.real * number.real + number.imag * number.imag


def largest_eigenvalue(matrices: Tensor | Bands, *, rough: bool = False) -> float:
    """Return the largest squared singular value of any matrix, to a relative error of about 1e-7.

    Large matrices use Lanczos iteration from a fixed start vector. ``rough`` stops it at a residual
    of ROUGH, which takes 8 to 20 passes over the matrix instead of 20 to 100.
    """
    residual = ROUGH if rough else None
    if isinstance(matrices, Bands):
        return _largest_of(matrices, residual)
    # Kernel slices are many and small, so they are solved in stacks of 64.
    if min(matrices.shape[1:]) <= _DENSE_SIDE:
        norms = [
            torch.linalg.matrix_norm(batch.to(_wide(batch)), 2).max()
            for batch in torch.split(matrices, 64)
        ]
        return float(torch.stack(norms).max()) ** 2
    return max(_largest_of(matrix, residual) for matrix in torch.split(matrices, 1))


def nearly_largest_eigenvalue(matrix: Tensor) -> float:
    """Return the largest squared singular value of one matrix, to a relative error of about 1e-4.

    It takes about 30 passes over a matrix of independent entries.
    """
    return _largest_of(matrix[None], CLOSE)


def entropy(eigenvalues: Array, rank: int | None = None) -> float:
    """Return the matrix entropy -sum(p ln p) / ln(rank), between 0 and 1; NaN at rank 1.

    p are the eigenvalues divided by their sum. ``rank`` is the number of positive ones by default.
    """
    # p ln p tends to 0 with p, so zeros add nothing. A tiny eigenvalue may have a share of zero.
    shares = eigenvalues / eigenvalues.sum()
    shares = shares[shares > 0]
    rank = shares.size if rank is None else rank
    if rank < 2:
        return math.nan
    return float(-(shares * np.log(shares)).sum() / math.log(rank))


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


def _largest_of(matrix: Tensor | Bands, residual: float | None) -> float:
    """Return the largest eigenvalue of A A^H: iterate in float32, then refine in float64.

    ``matrix`` is one matrix, (1, rows, cols), or its bands. The result is the Rayleigh quotient of
    the computed vector. Its error is the square of the vector's error, so iterating in float32
    halves the cost and loses no digit that matters. Weights in float64 are iterated in float64.
    With a ``residual``, at which the iteration stops, the result is not refined.
    """
    magnitude = max(map(largest_magnitude, bands_of(matrix)))
    # One matrix of a layer may be zero although another is not; Lanczos would divide by zero.
    if not magnitude:
        return 0.0
    columns = _Columns.of(matrix, magnitude)
    # The Gram matrix costs as much as many steps: a few do without it.
    multiply = (
        _two_products(columns)
        if residual or columns.height > _GRAM_SIDE or columns.is_on_gpu
        else _gram_product(columns)
    )
    largest, vector = _lanczos(multiply, _start_vector(columns.height, columns.dtype), residual)
    if residual:
        return math.ldexp(largest, 2 * columns.exponent)
    # Rayleigh quotient |A^H v|^2 / |v|^2 in double precision; ldexp undoes the scaling.
    wide = torch.complex128 if columns.dtype.is_complex else torch.float64
    top = torch.from_numpy(vector).to(wide)
    image = 0.0
    # The copies in double precision stay in a core's cache.
    for block in chain.from_iterable(columns.blocks(_CACHED)):
        image += float(_squared(columns.converted(block).mH.to(wide) @ top.to(block.device)))
    return math.ldexp(image / float(_squared(top)), 2 * columns.exponent)


@dataclass(frozen=True)
class _Columns:
    """A matrix A of which a few columns are converted for computing at a time.

    No second copy of a large matrix is made. A is the given matrix or its transpose, whose
    eigenvalues are the same.
    """

    matrix: Tensor | Bands
    turned: bool
    """Whether A is the transpose. Of a tensor it is what is no taller than wide; of bands that are
    rows it has these as its columns."""
    exponent: int
    """A is divided by 2^exponent, so that squares of extreme weights neither overflow nor vanish.
    A power of two makes this exact."""
    dtype: torch.dtype
    """Type to compute in: that of the matrix, but at least float32."""

    @classmethod
    def of(cls, matrix: Tensor | Bands, magnitude: float) -> _Columns:
        """Describe a matrix whose largest entry has this magnitude."""
        rows, cols = matrix.shape[1:]
        turned = matrix.axis == 0 if isinstance(matrix, Bands) else rows > cols
        dtype = torch.promote_types(matrix.dtype, torch.float32)
        # Of weights below the normal numbers of the type, 2^-exponent would be infinite.
        exponent = max(math.frexp(x)[1] for x in (magnitude, torch.finfo(dtype).tiny))
        return cls(matrix, turned, 0 if abs(exponent) <= _SAFE_EXPONENT else exponent, dtype)

    @property
    def is_on_gpu(self) -> bool:
        """Whether A lies on a GPU, for which products with a vector cost next to nothing."""
        return isinstance(self.matrix, torch.Tensor) and self.matrix.is_cuda

    @property
    def height(self) -> int:
        """Number of rows of A."""
        return self.matrix.shape[2 if self.turned else 1]

    def blocks(self, entries: int) -> Iterator[Sequence[Tensor]]:
        """Yield A in blocks of about so many entries: those of one band, or all, at a time."""
        for band in bands_of(self.matrix):
            own = band[0].mT if self.turned else band[0]
            # A GPU is better used by one large product than by many small ones.
            size = own.shape[1] if own.is_cuda else max(1, entries // self.height)
            yield torch.split(own, size, dim=1)

    def converted(self, block: Tensor) -> Tensor:
        """Return a block as it is computed with."""
        block = block.to(self.dtype)
        return block * 2.0**-self.exponent if self.exponent else block


@lru_cache(maxsize=16)
def _start_vector(size: int, dtype: torch.dtype) -> NDArray[Any]:
    """Return a unit vector to start from, in the precision of the matrix.

    It is the same for every matrix of this height, so results are reproducible. A random vector is
    almost surely not orthogonal to the eigenvector.
    """
    start = np.random.default_rng(0).standard_normal(size)
    return (start / np.linalg.norm(start)).astype(torch.empty(0, dtype=dtype).numpy().dtype)


def _lanczos(
    multiply: Callable[[NDArray[Any]], NDArray[Any]], start: NDArray[Any], residual: float | None
) -> tuple[float, NDArray[Any]]:
    """Return the largest eigenvalue of a positive semi-definite operator, and its eigenvector.

    Lanczos iteration with full reorthogonalization (Golub and Van Loan, Matrix Computations, 4th
    edition, 10.1 and 10.3). In the basis of the vectors so far the operator is tridiagonal; its
    largest eigenvalue and the residual of that are known at every step.
    """
    # float32 cannot reach a finer tolerance, and the Rayleigh quotient squares the error.
    precise = 1e-10 if start.dtype in (np.float64, np.complex128) else 1e-5
    tolerance, check = (residual, _LEAST_ROUGH_STEPS) if residual else (precise, _LEAST_STEPS)
    basis, diagonal, beside = start[None], np.empty(0), np.empty(0)
    while True:
        vector = multiply(basis[-1])
        diagonal = np.append(diagonal, np.vdot(basis[-1], vector).real)
        # Twice is enough (Kahan, in Parlett, The Symmetric Eigenvalue Problem, 6.9).
        for _ in range(2):
            vector = vector - basis.T @ (basis.conj() @ vector)
        length = float(np.linalg.norm(vector))
        # If nothing is left of the vector, the basis spans a space that holds the eigenvector.
        complete = len(basis) == len(start) or length <= np.finfo(start.dtype).eps * diagonal.max()
        if complete or len(basis) >= check:
            values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, -1))
            largest, weights = float(values[-1]), vectors[:, -1]
            if complete or length * abs(weights[-1]) <= tolerance * largest:
                return largest, basis.T @ weights.astype(start.dtype)
            # Checks grow rarer, so that their cost stays below that of the steps.
            check = math.ceil(1.1 * len(basis))
        beside = np.append(beside, length)
        basis = np.concatenate([basis, (vector / length).astype(start.dtype)[None]])


def _gram_product(columns: _Columns) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return the map v -> (A A^H) v, with the Gram matrix computed once.

    NumPy multiplies a real matrix by its own transpose in half the work of a general product.
    """

    def product(block: Tensor) -> NDArray[Any]:
        block = columns.converted(block).cpu()
        gram: NDArray[Any] = block.numpy() @ block.mH.resolve_conj().numpy()
        return gram

    total: Any = 0
    for blocks in columns.blocks(_PIECE):
        # A few at a time, since all Gram matrices of a round are in memory.
        for i in range(0, len(blocks), _ROUND):
            total = sum(spread(product, blocks[i : i + _ROUND]), start=total)
    return lambda vector: total @ vector.reshape(-1)


def _two_products(columns: _Columns) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return the map v -> A (A^H v), which never forms the Gram matrix.

    Each block of columns of A is read from memory once for both products.
    """

    def multiply(vector: NDArray[Any]) -> NDArray[Any]:
        v = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1)))

        def share(block: Tensor) -> NDArray[Any]:
            block = columns.converted(block)
            product: NDArray[Any] = (block @ (block.mH @ v.to(block.device))).cpu().numpy()
            return product

        total: Any = 0
        for blocks in columns.blocks(_PIECE):
            total = total + np.sum(spread(share, blocks), axis=0)
        return total  # type: ignore[no-any-return]

    return multiply


def _squared(values: Tensor) -> Tensor:
    """Return the sum of squared magnitudes."""
    return torch.vdot(values, values).real


def _wide(tensor: Tensor) -> torch.dtype:
    """Return the double-precision type for the tensor."""
    return torch.complex128 if tensor.is_complex() else torch.float64
