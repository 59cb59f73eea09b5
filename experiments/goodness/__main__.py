"""python -m experiments.goodness [--quick]: simulate the quantiles in spectail.core.goodness again.

A tail that follows a power law is drawn, alpha is fitted by maximum likelihood, and the
Kolmogorov-Smirnov (KS) distance between tail and fit is computed. The script prints the
quantiles of sqrt(n) * distance + 0.63 / sqrt(n) for tails of 1000, 200 and 50 samples beside
those in the module, with their standard error. It takes about a minute.
"""

from __future__ import annotations

import argparse
import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from experiments.common import markdown_table
from spectail.core.goodness import _CHANCES, _DISTANCES, _SHIFT

Array: TypeAlias = NDArray[np.float64]

SIZES = (1000, 200, 50)
DRAWS = 700_000
"""Simulated tails of each size; 20,000 with ``--quick``."""
BATCH = 2_000
"""Tails that are in memory at a time."""


def main(arguments: list[str] | None = None) -> None:
    """Print the quantiles in the module and those of a new simulation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20,000 tails of each size")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    options = parser.parse_args(arguments)
    draws = 20_000 if options.quick else DRAWS
    found = {n: scaled_distances(n, draws, options.seed) for n in SIZES}
    header = ["exceeded with probability", "in the module", *(f"n = {n}" for n in SIZES)]
    print(f"{draws:,} tails of each size, seed {options.seed}\n")
    print(markdown_table(header, [_row(i, found) for i in range(1, len(_CHANCES))]))


def _row(i: int, found: dict[int, Array]) -> list[str]:
    """Return one line of the table: the quantile in the module and the simulated ones."""
    simulated = (quantile(distances, _CHANCES[i]) for distances in found.values())
    return [
        f"{_CHANCES[i]:g}",
        f"{_DISTANCES[i]:.3f}",
        *(f"{q:.3f} ± {e:.3f}" for q, e in simulated),
    ]


def scaled_distances(n: int, draws: int, seed: int) -> Array:
    """Return sqrt(n) * KS distance + 0.63 / sqrt(n) of ``draws`` tails of ``n`` samples each."""
    rng = np.random.default_rng((seed, n))
    batches = [ks_distances(rng, n, min(BATCH, draws - i)) for i in range(0, draws, BATCH)]
    return math.sqrt(n) * np.concatenate(batches) + _SHIFT / math.sqrt(n)


def ks_distances(rng: np.random.Generator, n: int, draws: int) -> Array:
    """Return the distance between tails of a power law and their fits.

    For a power law y = ln(x / xmin) is exponential. Its scale, 1 / (alpha - 1), is fitted, so
    any scale may be drawn. xmin is the smallest eigenvalue of a tail, for which y = 0.
    """
    y = np.sort(rng.exponential(size=(draws, n)), axis=1)
    y -= y[:, :1]
    slope = n / y.sum(axis=1, keepdims=True)
    below = np.arange(n) / n
    distances: Array = np.abs(1 - np.exp(-slope * y) - below).max(axis=1)
    return distances


def quantile(distances: Array, chance: float) -> tuple[float, float]:
    """Return the value that is exceeded with this probability, and its standard error.

    The standard error comes from order statistics: the rank of the quantile is binomial.
    """
    ordered = np.sort(distances)
    spread = math.sqrt(chance * (1 - chance) / ordered.size)
    low, value, high = np.quantile(
        ordered, np.clip([1 - chance - spread, 1 - chance, 1 - chance + spread], 0, 1)
    )
    return float(value), float(high - low) / 2


if __name__ == "__main__":
    main()
