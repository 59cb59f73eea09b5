"""Laws that matrices are drawn from, the same for every experiment and test.

Each takes a random generator and a shape (rows, columns) and gives a float64 matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Law: TypeAlias = Callable[[np.random.Generator, tuple[int, int]], Array]


def gaussian(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Independent standard normal entries."""
    return rng.standard_normal(shape)


def student(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Independent entries, Student's t with 3 degrees of freedom."""
    return rng.standard_t(3, shape)


def row_scaled(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Normal entries whose rows have lognormal scales (sigma 0.5)."""
    # The entries are drawn before the scales: the results that are kept here have this order.
    entries = rng.standard_normal(shape)
    scales: Array = np.exp(0.5 * rng.standard_normal((shape[0], 1)))
    return entries * scales


def low_rank(rng: np.random.Generator, shape: tuple[int, int], share: float = 0.05) -> Array:
    """Noise plus a random matrix of rank ``share`` x short side.

    The entries of both have variance 1.
    """
    rank = max(1, round(share * min(shape)))
    # The noise is drawn first: the results that are kept here have this order.
    noise = gaussian(rng, shape)
    product: Array = gaussian(rng, (shape[0], rank)) @ gaussian(rng, (rank, shape[1]))
    result: Array = noise + product / np.sqrt(rank)
    return result


LAWS: dict[str, Law] = {
    "gaussian": gaussian,
    "student 3": student,
    "row-scaled": row_scaled,
    "low rank": low_rank,
}
