"""Eigenvalues of windows: squared singular values, not divided by anything, in float64.

By the Gram matrix of the shorter side and a symmetric solver: about half the work of an SVD. It
squares the condition number, so eigenvalues below ``max(window) * eps * largest`` are rounding
noise; they are told apart by ``numerical_zeros``. Everything is scaled by a power of two first,
which is exact: no Gram matrix overflows, and weights scaled by a power of two give the same bits.

On the CPU, NumPy's BLAS and LAPACK: its product of a matrix with its own transpose takes half the
work of a general one, and it solves stacks without holding Python's lock. ``benchmarks/solvers.py``
times the other ways; float32 would save a quarter, and cannot tell the smallest eigenvalues of a
square window from zero.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from spectail.core.cuda import stacked_eigenvalues
from spectail.core.threads import cores, single_threaded
from spectail.core.windows import Window

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]

_BATCH_BYTES = 16 * 2**20
"""Windows are solved in batches of about this size: large enough to keep a core busy, small enough
for any memory."""
_CALL_BYTES = 2 * 2**20
"""Smaller stacks keep threads waiting for Python's lock more than they solve."""
_SMALL_SIDE = 256
"""Windows up to this side are cut out many at a time; of larger ones the second copy would cost
more than the calls."""
_MOST_SHARED = 4
"""Large overlapping windows share their products in groups of this many, which are held at once."""


class _Strip(NamedTuple):
    """Windows side by side in one matrix, each overlapping the next by half or more; or a single window."""

    matrix: int
    top: int
    lefts: tuple[int, ...]
    places: tuple[int, ...]
    """Where each window stands in the list of positions."""


def window_eigenvalues(
    matrices: Tensor,
    window: Window,
    positions: Sequence[tuple[int, int]],
    *,
    exact_zeros: bool = False,
) -> Array:
    """Eigenvalues of the windows at ``positions`` of every matrix, ascending, shape (positions, matrices, min(window)).

    ``matrices`` is a finite real or complex tensor of shape (n, rows, cols) and is not modified.
    ``exact_zeros`` takes the SVD instead of the Gram matrix, as the published code does: slower,
    and small values keep their digits.
    """
    exponent = math.frexp(largest_magnitude(matrices))[1]
    scale = math.ldexp(1.0, -exponent)
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
    """Which eigenvalues (last axis: one window, ascending) are zero within the rounding of the Gram route."""
    floor = max(window) * np.finfo(np.float64).eps * eigenvalues[..., -1:]
    return eigenvalues <= np.maximum(floor, 0.0)


def largest_magnitude(matrices: Tensor) -> float:
    """The largest magnitude of an entry (of its real or its imaginary part)."""
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
    """Eigenvalues of windows that are no taller than wide, batches of them spread over the cores."""
    found = np.empty((len(positions), matrices.shape[0], window.rows))

    def solve(strips: Sequence[_Strip]) -> None:
        if exact_zeros:
            cuts = (_cut(matrices, strip, window, scale) for strip in strips)
            values = np.stack([np.linalg.svd(cut, compute_uv=False)[::-1] ** 2 for cut in cuts])
        else:
            values = np.linalg.eigvalsh(_grams(matrices, strips, window, scale))
        places = [(place, strip.matrix) for strip in strips for place in strip.places]
        found[tuple(np.transpose(places))] = values

    strips = _strips(window, positions, matrices.shape[0], share=not exact_zeros)
    workers = cores()
    batches = _batches(strips, window, workers)
    if workers == 1 or len(batches) == 1:
        for batch in batches:
            solve(batch)
        return found
    with single_threaded():
        list(_pool(workers, os.getpid()).map(solve, batches))
    return found


@lru_cache(maxsize=1)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """The threads of this process (a forked one has none of its parent's): kept, and with them their memory."""
    return ThreadPoolExecutor(workers, thread_name_prefix=f"spectail-{process}")


class _Room(threading.local):
    """Memory that each thread fills again and again: fresh pages cost as much as a third of the solver's time."""

    def __init__(self) -> None:
        self.held: dict[str, NDArray[Any]] = {}

    def take(self, use: str, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        """An array with whatever was in it, valid until the same thread takes it for the same use again."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if self.held.get(use, np.empty(0)).nbytes < size:
            self.held[use] = np.empty(size, np.uint8)
        return self.held[use][:size].view(dtype).reshape(shape)


_ROOM = _Room()


def _cut(matrices: Tensor, strip: _Strip, window: Window, scale: float) -> NDArray[Any]:
    """The columns from the first to the last window of a strip, in double precision, scaled."""
    end = strip.lefts[-1] + window.cols
    return _widened(
        matrices[strip.matrix, strip.top : strip.top + window.rows, strip.lefts[0] : end], scale
    )


def _cuts(matrices: Tensor, strips: Sequence[_Strip], window: Window, scale: float) -> NDArray[Any]:
    """Single windows, stacked: taken out in one call, since threads queue for Python's lock at every call."""
    everywhere = matrices.unfold(1, window.rows, 1).unfold(2, window.cols, 1)
    places = torch.tensor([(strip.matrix, strip.top, strip.lefts[0]) for strip in strips]).unbind(1)
    return _widened(everywhere[places], scale)


def _widened(piece: Tensor, scale: float) -> NDArray[Any]:
    room = _ROOM.take(
        "cut", tuple(piece.shape), np.complex128 if piece.is_complex() else np.float64
    )
    torch.from_numpy(room).copy_(piece.detach()).mul_(scale)
    return room


def _grams(
    matrices: Tensor, strips: Sequence[_Strip], window: Window, scale: float
) -> NDArray[Any]:
    """The Gram matrices of all windows of the strips, stacked."""
    count = sum(len(strip.lefts) for strip in strips)
    dtype = np.complex128 if matrices.is_complex() else np.float64
    grams, done = _ROOM.take("grams", (count, window.rows, window.rows), dtype), 0
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
    """W W^H of the windows of ``width`` columns that start at ``lefts`` (ascending, all overlapping), into ``out``.

    ``piece`` begins at the first of them. The columns that all windows have are multiplied once;
    what a window has left of them is summed up leftwards, what it has right of them rightwards.
    Only sums: nothing cancels.
    """
    starts = [left - lefts[0] for left in lefts]
    _gram(piece[:, starts[-1] : width], out=out[-1])
    if len(starts) == 1:
        return
    for i in range(len(starts) - 1, 0, -1):
        np.add(out[i], _gram(piece[:, starts[i - 1] : starts[i]]), out=out[i - 1])
    right = np.zeros_like(out[0])
    for i in range(1, len(starts)):
        right += _gram(piece[:, width + starts[i - 1] : width + starts[i]])
        out[i] += right


def _gram(columns: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Columns times their own transpose, for which NumPy does half the work."""
    transposed = np.swapaxes(columns, -1, -2)
    return np.matmul(
        columns, transposed.conj() if np.iscomplexobj(columns) else transposed, out=out
    )


def _strips(
    window: Window, positions: Sequence[tuple[int, int]], n_matrices: int, *, share: bool
) -> list[_Strip]:
    """All windows of all matrices, neighbours that overlap by half or more together where ``share``."""
    most = max(_MOST_SHARED, _BATCH_BYTES // (8 * window.rows**2)) if share else 1
    groups: list[list[int]] = []
    for place in sorted(range(len(positions)), key=lambda place: positions[place]):
        top, left = positions[place]
        if groups:
            first_top, first_left = positions[groups[-1][0]]
            if (
                first_top == top
                and left - first_left <= window.cols // 2
                and len(groups[-1]) < most
            ):
                groups[-1].append(place)
                continue
        groups.append([place])
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


def _batches(strips: list[_Strip], window: Window, workers: int) -> list[list[_Strip]]:
    """Strips in batches of about _BATCH_BYTES, and four batches a worker where each is worth a call of the solver.

    All of about one size, and as many for one worker as for the other: nobody waits for the last.
    """
    windows, size = sum(len(strip.lefts) for strip in strips), 8 * window.rows**2
    worth = min(-(-windows // workers), _CALL_BYTES // size)
    most = max(1, min(_BATCH_BYTES // size, max(worth, windows // (4 * workers))))
    rounds = -(-windows // (most * workers))
    most = -(-windows // (rounds * workers))
    batches: list[list[_Strip]] = []
    held = most
    for strip in strips:
        if held + len(strip.lefts) > most:
            batches.append([])
            held = 0
        batches[-1].append(strip)
        held += len(strip.lefts)
    return batches
