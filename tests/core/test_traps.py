"""Traps: the p-value is uniform without them, and a few huge entries are found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import kstest

from spectail.core.traps import LEVEL, LargestLaw, Traps, find_traps
from spectail.core.windows import RandomPlacement, Tile, Window
from tests.reference.plain_traps import plain_windows_of

NDFloat = NDArray[np.float64]


def _found(entries: NDFloat, window: tuple[int, int], seed: int = 0) -> Traps:
    cut = Window(*window)
    rows, cols = entries.shape[1:]
    positions = Tile().positions(rows, cols, cut)
    return find_traps(torch.from_numpy(entries), cut, positions, seed=seed)


CASES = [
    ((1, 64, 64), (64, 64)),
    ((1, 32, 128), (32, 128)),
    ((1, 128, 128), (32, 32)),
    ((1, 100, 100), (64, 64)),
    ((9, 32, 32), (32, 32)),
]
"""Shapes of layers and windows: one window, elongated, several, overlapping, kernel slices."""


@pytest.mark.parametrize(("shape", "window"), CASES)
def test_the_p_value_is_uniform_for_gaussian_entries(
    shape: tuple[int, int, int], window: tuple[int, int]
) -> None:
    rng = np.random.default_rng(5)
    scale = rng.lognormal(size=(shape[0], 1, 1))
    p = [_found(scale * rng.standard_normal(shape), window, i).p for i in range(200)]
    # 200 draws see a distance of 0.14 from the uniform law; overlapping windows lie within it too.
    assert kstest(p, "uniform").pvalue > 1e-3
    assert sum(x <= 0.05 for x in p) == pytest.approx(10, abs=9)


def test_uniform_entries_have_fewer_traps_than_gaussian_ones() -> None:
    rng = np.random.default_rng(6)
    p = [_found(rng.uniform(-1, 1, (1, 64, 64)), (64, 64), i).p for i in range(300)]
    assert sum(x <= LEVEL for x in p) <= 6


@pytest.mark.parametrize(("shape", "window"), CASES)
def test_a_few_huge_entries_are_found_and_counted(
    shape: tuple[int, int, int], window: tuple[int, int]
) -> None:
    counts = []
    for draw in range(10):
        rng = np.random.default_rng((7, draw))
        entries = rng.standard_normal(shape)
        # Above the edge of a window by half: its eigenvalue is about the square of the entry.
        huge = 1.5 * (math.sqrt(window[0]) + math.sqrt(window[1]))
        for place in ([0, 3], [7, 5], [20, 30]):
            entries[-1, *place] = huge
        found = _found(entries, window, draw)
        assert found.p < 1e-6
        assert found.ratio > 1
        assert not found.from_mean
        counts.append(found.n)
    # Two in one row or column can share an eigenvalue; in windows that overlap one counts twice.
    assert min(counts) >= 2
    assert 2.5 < np.mean(counts) <= (3 if shape[1] != 100 else 12)


def test_a_strong_structure_without_huge_entries_is_no_trap() -> None:
    rng = np.random.default_rng(8)
    left, right = rng.choice([-1.0, 1.0], (2, 128))
    # A matrix of rank one that holds half of the variance: the shuffle destroys it.
    entries = np.outer(left, right) + rng.standard_normal((128, 128))
    eigenvalues = np.linalg.svd(entries, compute_uv=False) ** 2
    assert eigenvalues[0] > 10 * eigenvalues[1]
    assert _found(entries[None], (128, 128)).n == 0


def test_a_mean_makes_a_trap_and_is_named() -> None:
    rng = np.random.default_rng(9)
    found = _found(rng.standard_normal((1, 128, 128)) + 0.5, (128, 128))
    assert (found.n, found.from_mean) == (1, True)


@pytest.mark.parametrize("side", [64, 160])
def test_count_and_ratio_are_those_of_the_shuffled_windows(side: int) -> None:
    """The side of 160 takes the iteration for the largest eigenvalue."""
    rng = np.random.default_rng(10)
    entries = rng.standard_t(3, (2, 2 * side, side + 7))
    window = Window(side, side)
    positions = RandomPlacement(3).positions(2 * side, side + 7, window)
    found = find_traps(torch.from_numpy(entries), window, positions, seed=4)
    shuffles = np.random.default_rng((4, *entries.shape))
    eigenvalues = []
    for matrix in entries:
        flat = matrix.flatten()
        shuffles.shuffle(flat)
        cut = plain_windows_of(flat.reshape(matrix.shape), (side, side), positions)
        eigenvalues.append(np.concatenate(cut) / matrix.var())
    values = np.concatenate(eigenvalues)
    law = LargestLaw.of(window, entries[0].size)
    edge = law.edge(1 - (1 - LEVEL) ** (1 / 6))
    assert found.n == int((values > edge).sum()) > 0
    assert found.ratio == pytest.approx(values.max() / edge, rel=1e-6)


def test_the_law_agrees_with_tables_of_tracy_and_widom() -> None:
    """Quantiles of the law for real entries, from Johnstone 2001, table 1 (percentiles)."""
    # With infinitely many entries the variance is known, and the law is that of Tracy and Widom.
    window = Window(1000, 1000)
    law = LargestLaw.of(window, 10**15)
    root = math.sqrt(999.5)
    centre, width = (2 * root) ** 2, 2 * root * (2 / root) ** (1 / 3)
    for quantile, below in ((-3.90, 0.01), (-1.27, 0.50), (0.45, 0.90), (0.98, 0.95), (2.02, 0.99)):
        assert 1 - law.exceeded(centre + width * quantile) == pytest.approx(below, abs=0.003)
    assert law.exceeded(law.edge(1e-5)) == pytest.approx(1e-5)


def test_the_scale_and_the_input_do_not_matter() -> None:
    rng = np.random.default_rng(11)
    entries = rng.standard_normal((1, 64, 64))
    before = entries.copy()
    found = _found(entries, (64, 64))
    assert _found(1e-9 * entries, (64, 64)).p == pytest.approx(found.p, rel=1e-6)
    assert (entries == before).all()
    half = find_traps(torch.from_numpy(entries).bfloat16(), Window(64, 64), [(0, 0)])
    assert half.p == pytest.approx(found.p, abs=0.1)


def test_complex_entries_have_a_law_of_their_own() -> None:
    rng = np.random.default_rng(12)
    p = []
    for seed in range(300):
        entries = rng.standard_normal((1, 48, 48)) + 1j * rng.standard_normal((1, 48, 48))
        p.append(find_traps(torch.from_numpy(entries), Window(48, 48), [(0, 0)], seed=seed).p)
    assert kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("entries", "window"),
    [(np.full((1, 64, 64), 0.3), (64, 64)), (np.eye(7, 40)[None], (7, 40))],
    ids=["equal entries", "too small"],
)
def test_what_has_no_edge_has_no_p_value(entries: NDFloat, window: tuple[int, int]) -> None:
    found = _found(entries, window)
    assert math.isnan(found.p)
    assert math.isnan(found.n)
