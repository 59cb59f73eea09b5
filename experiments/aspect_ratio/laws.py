"""Matrices of any shape drawn from one law, and one family that only looks like one law.

One law means: a window of a given size is distributed the same wherever it lies and whatever
matrix it was cut from. That holds for independent entries, for rows (or columns) with
independent scales, and for a fixed *rank* with independent factors; it fails where the rank
grows with the matrix, because a window then sees another mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
RANK = 16
SHARE = 0.2
"""Part of the variance that the low-rank term has."""
ROW_SPREAD = 0.5
"""Standard deviation of the logarithm of a row's scale."""


@dataclass(frozen=True)
class Law:
    """``draw(rng, rows, cols)`` gives a matrix.

    ``one`` says whether its windows have one law at every shape.
    """

    draw: Callable[[np.random.Generator, int, int], Array]
    one: bool = True


def gaussian(rng: np.random.Generator, rows: int, cols: int) -> Array:
    """Independent standard normal entries."""
    return rng.standard_normal((rows, cols), dtype=np.float32)


def student(rng: np.random.Generator, rows: int, cols: int) -> Array:
    """Independent Student-t entries with 3 degrees of freedom.

    Their variance is finite, their fourth moment infinite.
    """
    chi = rng.standard_gamma(1.5, (rows, cols), dtype=np.float32) * np.float32(2 / 3)
    entries: Array = gaussian(rng, rows, cols) / np.sqrt(chi)
    return entries


def scaled_rows(rng: np.random.Generator, rows: int, cols: int) -> Array:
    """Normal entries, each row times a log-normal scale of its own."""
    scales = np.exp(ROW_SPREAD * gaussian(rng, rows, 1))
    entries: Array = gaussian(rng, rows, cols) * scales
    return entries


def scaled_columns(rng: np.random.Generator, rows: int, cols: int) -> Array:
    """The transpose of ``scaled_rows``: the scales vary along the longer side of a wide matrix."""
    return np.ascontiguousarray(scaled_rows(rng, cols, rows).T)


def low_rank(rng: np.random.Generator, rows: int, cols: int, rank: int = RANK) -> Array:
    """Noise plus ``U V^T`` of fixed rank with independent factors.

    The second part has SHARE of the variance of every entry.
    """
    product = gaussian(rng, rows, rank) @ gaussian(rng, rank, cols)
    return (
        np.float32((1 - SHARE) ** 0.5) * gaussian(rng, rows, cols)
        + np.float32((SHARE / rank) ** 0.5) * product
    )


def growing_rank(rng: np.random.Generator, rows: int, cols: int) -> Array:
    """The same with the rank an eighth of the shorter side.

    This is not one law: a window's rank grows with the matrix.
    """
    return low_rank(rng, rows, cols, rank=max(1, min(rows, cols) // 8))


LAWS: dict[str, Law] = {
    "Gaussian": Law(gaussian),
    "Student-t, 3 degrees": Law(student),
    "rows of different scale": Law(scaled_rows),
    "columns of different scale": Law(scaled_columns),
    "rank 16 plus noise": Law(low_rank),
    "growing rank plus noise": Law(growing_rank, one=False),
}
