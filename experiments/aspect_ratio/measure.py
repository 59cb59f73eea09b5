"""Alphas of one matrix: in windows, as a whole, and in windows of every size."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.aspect_ratio.laws import LAWS, RANK, ROW_SPREAD, SHARE
from spectail.core.cutoffs import Cutoff, HistogramPeak, KSMinimum, Median, TopFraction
from spectail.core.spectra import numerical_zeros, window_eigenvalues
from spectail.core.tails import fit_from
from spectail.core.windows import Tile, Window, largest_fit

Matrix: TypeAlias = NDArray[np.float32]
CUTOFFS: dict[str, Cutoff] = {
    "median": Median(),
    "top:0.1": TopFraction(0.1),
    "ks": KSMinimum(),
    "peak": HistogramPeak(),
}


@dataclass(frozen=True)
class Settings:
    """Shapes, windows and seeds. A matrix is wide: ``short`` rows and ``short * ratio`` columns."""

    shorts: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    ratios: tuple[int, ...] = (1, 2, 4, 8, 16)
    longest: int = 4096
    whole_up_to: int = 2048
    """Longest short side whose whole spectrum is taken."""
    window: int = 128
    seeds: int = 5
    seeds_of_large: int = 2
    """Seeds for matrices of more than 2^21 entries."""
    crop_shorts: tuple[int, ...] = (96, 192, 384)
    crop_window: int = 96
    sizes: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    size_matrix: int = 1024
    """Side of the square matrices on which the window's size is varied."""
    size_seeds: int = 3

    def shapes(self) -> list[tuple[int, int]]:
        """(rows, columns) of the drawn matrices."""
        return [
            (short, short * ratio)
            for short in self.shorts
            for ratio in self.ratios
            if short * ratio <= self.longest
        ]

    def seeds_for(self, rows: int, cols: int) -> range:
        """Seeds of the draws of one shape."""
        return range(self.seeds if rows * cols <= 2**21 else self.seeds_of_large)

    def crops(self, rows: int, cols: int) -> list[tuple[int, int]]:
        """(rows, columns) of the pieces that are cut from a rows x cols layer.

        The longer side of a piece lies along the longer side of the layer.
        """
        short, long = sorted((rows, cols))
        found = [
            (side, side * ratio)
            for side in self.crop_shorts
            for ratio in self.ratios
            if side <= short and side * ratio <= long
        ]
        return found if cols >= rows else [(b, a) for a, b in found]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, those of the laws included."""
        return asdict(self) | {
            "rank": RANK,
            "share of the low-rank term": SHARE,
            "spread of the log of a row's scale": ROW_SPREAD,
            "cutoffs": {name: repr(cutoff) for name, cutoff in CUTOFFS.items()},
        }


def drawn(law: str, rows: int, cols: int, seed: int) -> Matrix:
    """The matrix of a law, a shape and a seed."""
    return LAWS[law].draw(np.random.default_rng((seed, rows, cols)), rows, cols)


def piece(matrix: Matrix, rows: int, cols: int, seed: int) -> Matrix:
    """A contiguous rows x cols piece at a random place."""
    rng = np.random.default_rng((seed, rows, cols))
    top, left = (
        int(rng.integers(0, room + 1)) for room in (matrix.shape[0] - rows, matrix.shape[1] - cols)
    )
    return matrix[top : top + rows, left : left + cols]


def shape_alphas(matrix: Matrix, window: int, *, whole: bool) -> dict[str, dict[str, float]]:
    """Alphas by cutoff in tiles of ``window``, and of the whole matrix."""
    found = {"windows": alphas(matrix, Window(window, window))}
    if whole:
        found["whole"] = alphas(matrix, Window(*matrix.shape))
    return found


def size_alphas(matrix: Matrix, sizes: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """Alphas by cutoff in tiles of every size that fits."""
    fits = [size for size in sizes if size <= largest_fit(*matrix.shape)]
    return {str(size): alphas(matrix, Window(size, size)) for size in fits}


def alone_alphas(matrix: Matrix, sizes: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """The mean over single windows of their median alphas, by size.

    This is what one window gives, without pooling.
    """
    rows, cols = matrix.shape
    stack = torch.from_numpy(matrix)[None]
    found = {}
    for size in sizes:
        window = Window(size, size)
        values = window_eigenvalues(stack, window, Tile().positions(rows, cols, window)).reshape(
            -1, size
        )
        fits = [fit_from(each, Median().start(each)).alpha for each in values]
        found[str(size)] = {"median": float(f"{np.mean(fits):.6g}")}
    return found


def alphas(matrix: Matrix, window: Window) -> dict[str, float]:
    """Alphas by cutoff of the pooled eigenvalues of tiles."""
    rows, cols = matrix.shape
    positions = Tile().positions(rows, cols, window)
    found = window_eigenvalues(
        torch.from_numpy(np.ascontiguousarray(matrix))[None], window, positions
    )
    values = np.sort(found[~numerical_zeros(found, window)])
    fits = {name: fit_from(values, cutoff.start(values)).alpha for name, cutoff in CUTOFFS.items()}
    return {name: float(f"{alpha:.6g}") for name, alpha in fits.items()}
