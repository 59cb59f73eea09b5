"""Eigenvalues of windows: squared singular values in float64, not divided by anything.

They are computed from the Gram matrix of the shorter side with a symmetric solver, in about half
the work of an SVD. The Gram matrix squares the condition number, so eigenvalues below ``max(window)
* eps * largest`` are rounding noise, and ``numerical_zeros`` marks them. Weights of 64 bits are
first scaled by a power of two. This scaling is exact, no Gram matrix overflows, and weights that
differ by a power of two give the same bits. The squares of shorter floats are inside the range of
float64 anyway.

On the CPU the work is done by NumPy's BLAS and LAPACK: its product of a matrix with its own
transpose takes half the work of a general product, and it solves stacks without holding Python's
lock. Small windows are solved by MKL, where torch has it. ``benchmarks/solvers.py`` times the
alternatives. float32 would save at most a quarter of the time, but cannot tell the smallest
eigenvalues of a square window from zero, and a bound on its error in alpha is too loose to decide
anything (``benchmarks/precision.py``).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from spectail.core.cuda import stacked_eigenvalues
from spectail.core.threads import cores, spread
from spectail.core.windows import Window

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]

_BATCH_BYTES = 16 * 2**20
"""Windows are solved in batches of about this size: large enough to keep a core busy, small enough
for any memory."""
_CALL_BYTES = 2 * 2**20
"""With smaller stacks threads spend more time waiting for Python's lock than solving."""
_SMALL_SIDE = 64
"""Windows up to this side are cut out and multiplied many at a time. Larger ones are multiplied one
by one while they are in the core's cache, which saves more than the calls cost."""
_MKL_SIDE = 256
"""Up to this side MKL, torch's library on x86, needs 0.8 to 0.9 of the time of NumPy's OpenBLAS on
Intel processors."""
_MKL_STEP = 8
"""Intel documents that MKL's sums may depend on where a column begins within 64 bytes. With sides
that are multiples of this all columns begin alike, so a window has the same bits in every batch."""
_MOST_SHARED = 4
"""Largest group of overlapping windows that share partial products, if the windows are large. All
of a group is in memory at once."""


class _Strip(NamedTuple):
    """Neighbouring windows of one matrix that overlap by half or more, or a single window."""

    matrix: int
    top: int
    lefts: tuple[int, ...]
    places: tuple[int, ...]
    """Index of each window in the list of positions."""


def window_eigenvalues(
    matrices: Tensor,
    window: Window,
    positions: Sequence[tuple[int, int]],
    *,
    exact_zeros: bool = False,
) -> Array:
    """Return ascending eigenvalues of every window, shape (positions, matrices, min(window)).

    ``matrices`` is a finite real or complex tensor of shape (n, rows, cols); it is not modified.
    Every matrix has a window at each of the ``positions`` (top left corners). ``exact_zeros`` uses
    the SVD instead of the Gram matrix, as the published code does: slower, but small values keep
    their digits.
    """
    # Scale the largest weight to between 1/2 and 1; squared, the exponent counts twice. Powers of
    # floats of at most 32 bits, up to the fourth in the solver, do not leave float64's range: to
    # leave out the scaling changes no bit of the result and saves two passes over the weights.
    wide = torch.finfo(matrices.dtype).bits > 32
    exponent = math.frexp(largest_magnitude(matrices))[1] if wide else 0
    scale = math.ldexp(1.0, -exponent)
    # A matrix and its transpose have the same eigenvalues: solve the smaller Gram matrix.
    if window.rows > window.cols:
        matrices, window = matrices.mT, Window(window.cols, window.rows)
        positions = [(left, top) for top, left in positions]
    if matrices.is_cuda:
        found = stacked_eigenvalues(
            matrices, window, positions, scale=scale, exact_zeros=exact_zeros
        )
    else:
        found = _on_cpu(matrices, window, positions, scale=scale, exact_zeros=exact_zeros)
    return np.ldexp(found, 2 * exponent)


def numerical_zeros(eigenvalues: Array, window: Window) -> NDArray[np.bool_]:
    """Mark the eigenvalues that are zero within the rounding error of the Gram matrix.

    The last axis holds the ascending eigenvalues of one window.
    """
    # np.maximum guards against a largest eigenvalue that is negative by rounding.
    floor = max(window) * np.finfo(np.float64).eps * eigenvalues[..., -1:]
    return eigenvalues <= np.maximum(floor, 0.0)


def largest_magnitude(matrices: Tensor) -> float:
    """Return the largest magnitude of an entry (of its real or imaginary part)."""
    # view_as_real needs a tensor whose conjugation is carried out, not only marked.
    if matrices.is_complex():
        matrices = torch.view_as_real(matrices.resolve_conj())
    lowest, highest = torch.aminmax(matrices)
    return max(abs(float(lowest)), abs(float(highest)))


def _on_cpu(
    matrices: Tensor,
    window: Window,
    positions: Sequence[tuple[int, int]],
    *,
    scale: float,
    exact_zeros: bool,
) -> Array:
    """Solve windows that are no taller than wide, with batches of them spread over the cores."""
    found = np.empty((len(positions), matrices.shape[0], window.rows))

    def solve(strips: Sequence[_Strip]) -> None:
        if exact_zeros:
            cuts = (_cut(matrices, strip, window, scale) for strip in strips)
            values = np.stack([np.linalg.svd(cut, compute_uv=False)[::-1] ** 2 for cut in cuts])
        else:
            values = symmetric_eigenvalues(_grams(matrices, strips, window, scale))
        places = [(place, strip.matrix) for strip in strips for place in strip.places]
        # Every thread writes to places of its own, so no lock is needed.
        found[tuple(np.transpose(places))] = values

    strips = _strips(window, positions, matrices.shape[0], share=not exact_zeros)
    spread(solve, _batches(strips, window, cores()))
    return found


def symmetric_eigenvalues(grams: NDArray[Any]) -> Array:
    """Return the ascending eigenvalues of symmetric (or Hermitian) matrices in double precision.

    ``grams`` is a stack, (n, side, side). LAPACK expects matrices column by column. Given the
    transpose, which has the same eigenvalues, both libraries copy it in the order in which it lies
    in memory.
    """
    side = grams.shape[-1]
    if torch.backends.mkl.is_available() and side <= _MKL_SIDE and side % _MKL_STEP == 0:
        values: Array = torch.linalg.eigvalsh(torch.from_numpy(grams).mT, UPLO="U").numpy()
    else:
        values = np.linalg.eigvalsh(grams.swapaxes(-1, -2))
    return values


class _Room(threading.local):
    """Buffers that each thread reuses: fresh pages cost up to a third of the solver's time."""

    def __init__(self) -> None:
        self.held: dict[str, NDArray[Any]] = {}

    def take(self, use: str, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        """Return an uninitialized array, valid until this thread takes one for this use again."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self.held.get(use, np.empty(0)).nbytes < size:
            self.held[use] = np.empty(size, np.uint8)
        return self.held[use][:size].view(dtype).reshape(shape)


_ROOM = _Room()


def _cut(matrices: Tensor, strip: _Strip, window: Window, scale: float) -> NDArray[Any]:
    """Return a strip's columns, from its first window to its last, scaled, in double precision."""
    end = strip.lefts[-1] + window.cols
    return _widened(
        matrices[strip.matrix, strip.top : strip.top + window.rows, strip.lefts[0] : end], scale
    )


def _cuts(matrices: Tensor, strips: Sequence[_Strip], window: Window, scale: float) -> NDArray[Any]:
    """Return single windows, stacked: one indexing call, since threads queue for Python's lock."""
    # unfold gives a view of all windows, shape (n, tops, lefts, rows, cols), without a copy.
    everywhere = matrices.unfold(1, window.rows, 1).unfold(2, window.cols, 1)
    places = torch.tensor([(strip.matrix, strip.top, strip.lefts[0]) for strip in strips]).unbind(1)
    return _widened(everywhere[places], scale)


def _widened(piece: Tensor, scale: float) -> NDArray[Any]:
    """Copy a piece into this thread's buffer in double precision and scale it there."""
    room = _ROOM.take(
        "cut", tuple(piece.shape), np.complex128 if piece.is_complex() else np.float64
    )
    torch.from_numpy(room).copy_(piece.detach())
    return room if scale == 1 else np.multiply(room, scale, out=room)


def _grams(
    matrices: Tensor, strips: Sequence[_Strip], window: Window, scale: float
) -> NDArray[Any]:
    """Return the Gram matrices of all windows of the strips, stacked."""
    count = sum(len(strip.lefts) for strip in strips)
    dtype = np.complex128 if matrices.is_complex() else np.float64
    grams, done = _ROOM.take("grams", (count, window.rows, window.rows), dtype), 0
    # No strip has more than one window and all are small: cut them out together.
    if count == len(strips) and window.rows <= _SMALL_SIDE:
        return _gram(_cuts(matrices, strips, window, scale), out=grams)
    for strip in strips:
        own = grams[done : done + len(strip.lefts)]
        shared_grams(_cut(matrices, strip, window, scale), strip.lefts, window.cols, out=own)
        done += len(own)
    return grams


def shared_grams(
    piece: NDArray[Any], lefts: Sequence[int], width: int, *, out: NDArray[Any]
) -> None:
    """Write W W^H of overlapping windows of ``width`` columns that start at ``lefts`` into ``out``.

    ``lefts`` is ascending and all windows overlap; ``piece`` begins at the first of them. The
    columns that all windows share are multiplied once. The columns that a window has to the left of
    these are summed up from right to left, those to the right from left to right. There are only
    additions, so nothing cancels.
    """
    starts = [left - lefts[0] for left in lefts]
    _gram(piece[:, starts[-1] : width], out=out[-1])
    if len(starts) == 1:
        return
    # out[i] so far: the shared columns and all that window i has to their left.
    for i in range(len(starts) - 1, 0, -1):
        np.add(out[i], _gram(piece[:, starts[i - 1] : starts[i]]), out=out[i - 1])
    # Now add what each window has to the right of the shared columns.
    right = np.zeros_like(out[0])
    for i in range(1, len(starts)):
        right += _gram(piece[:, width + starts[i - 1] : width + starts[i]])
        out[i] += right


def _gram(columns: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return columns times their own transpose, for which NumPy does half the work."""
    # NumPy calls BLAS's syrk only if it sees that both factors share their memory.
    transposed = np.swapaxes(columns, -1, -2)
    return np.matmul(
        columns, transposed.conj() if np.iscomplexobj(columns) else transposed, out=out
    )


def _strips(
    window: Window, positions: Sequence[tuple[int, int]], n_matrices: int, *, share: bool
) -> list[_Strip]:
    """Group the windows of all matrices into strips.

    With ``share``, a strip holds neighbours that overlap its first window by half or more.
    """
    groups = _groups(window, positions) if share else [[i] for i in _in_order(positions)]
    return [
        _Strip(
            matrix,
            positions[group[0]][0],
            tuple(positions[place][1] for place in group),
            tuple(group),
        )
        for matrix in range(n_matrices)
        for group in groups
    ]


def _in_order(positions: Sequence[tuple[int, int]]) -> list[int]:
    """Return the indices of the positions, from top to bottom and from left to right."""
    return sorted(range(len(positions)), key=lambda place: positions[place])


def _groups(window: Window, positions: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Group neighbours that overlap the first of their group by half or more, as indices."""
    most = max(_MOST_SHARED, _BATCH_BYTES // (8 * window.rows**2))
    groups: list[list[int]] = []
    for place in _in_order(positions):
        top, left = positions[place]
        first_top, first_left = positions[groups[-1][0]] if groups else (-1, -1)
        near = top == first_top and left - first_left <= window.cols // 2
        if near and len(groups[-1]) < most:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _batches(strips: list[_Strip], window: Window, workers: int) -> list[list[_Strip]]:
    """Group strips into batches of about equal size, as many for each worker."""
    most = _batch_size(sum(len(strip.lefts) for strip in strips), window, workers)
    batches: list[list[_Strip]] = []
    held = most
    for strip in strips:
        if held + len(strip.lefts) > most:
            batches.append([])
            held = 0
        batches[-1].append(strip)
        held += len(strip.lefts)
    return batches


def _batch_size(windows: int, window: Window, workers: int) -> int:
    """Return how many of the windows one batch holds; -(-a // b) is a / b rounded up.

    A batch takes at most about _BATCH_BYTES. Each worker gets four batches if they are large enough
    to be worth a call of the solver, so that no worker waits long for the last one.
    """
    size = 8 * window.rows**2
    worth = min(-(-windows // workers), _CALL_BYTES // size)
    most = max(1, min(_BATCH_BYTES // size, max(worth, windows // (4 * workers))))
    # Even out: the same number of batches for every worker, all of about one size.
    rounds = -(-windows // (most * workers))
    return -(-windows // (rounds * workers))
