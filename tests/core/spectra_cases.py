"""Spectra of many kinds, as data: ascending positive eigenvalues."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def gaussian_windows(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """What a random matrix shows: about ``size`` squared singular values of 32 x 32 Gaussian
    windows."""
    side = min(32, size)
    windows = rng.standard_normal((max(1, size // side), side, side))
    singular: Any = np.linalg.svd(windows, compute_uv=False).ravel()
    squared: NDArray[np.float64] = singular**2
    return squared


KINDS: dict[str, Any] = {
    "pareto": lambda rng, n: 1 / rng.random(n) ** rng.uniform(0.3, 2),
    "lognormal": lambda rng, n: np.exp(rng.normal(0, rng.uniform(0.1, 4), n)),
    "uniform": lambda rng, n: rng.random(n) + 1e-9,
    "exponential": lambda rng, n: rng.exponential(1e4, n) + 1e-30,
    "two clusters": lambda rng, n: np.where(
        rng.random(n) < 0.7, rng.normal(1, 0.01, n), rng.normal(100, 3, n)
    ),
    "ties": lambda rng, n: rng.integers(1, 2 + n // 7, n).astype(float),
    "few values": lambda rng, n: rng.choice([0.5, 2.0, 2.5, 40.0], n),
    "doubled": lambda rng, n: np.repeat(1 / rng.random(n // 2 + 1), 2)[: max(n, 2)],
    "geometric": lambda rng, n: 1.01 ** np.arange(n),
    "gaussian windows": gaussian_windows,
    "outlier": lambda rng, n: np.append(rng.random(n - 1) + 0.5, 1e9),
    "tiny scale": lambda rng, n: 1e-200 / rng.random(n),
    "huge scale": lambda rng, n: 1e200 / rng.random(n),
}
SIZES = [2, 3, 5, 17, 100, 641, 3000]


def spectrum(kind: str, size: int, seed: int = 0) -> NDArray[np.float64]:
    """A seeded spectrum of a kind."""
    rng = np.random.default_rng((seed, size, sorted(KINDS).index(kind)))
    return np.sort(KINDS[kind](rng, size))


def distinct(kind: str) -> bool:
    """Whether no two eigenvalues of this kind are equal."""
    return kind not in ("ties", "few values", "doubled")
