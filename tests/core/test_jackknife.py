"""The error bar: against the loops, and against how much alpha really moves from draw to draw."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spectail.core.cutoffs import KSMinimum, Median, TopFraction
from spectail.core.jackknife import MAX_BANDS, alpha_standard_error, error_of_windows
from spectail.core.measure import tail_fit
from spectail.core.spec import Spec
from tests.reference import plain_farms, plain_jackknife

CUTOFFS = {"median": Median(), "ks": KSMinimum(), "top:0.1": TopFraction(0.1)}
SHAPES = [((256, 256), 64), ((192, 576), 192), ((200, 200), 192), ((512, 768), 128)]


def row_scaled(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape) * np.exp(0.5 * rng.standard_normal((shape[0], 1)))


LAWS = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "student 3": lambda rng, shape: rng.standard_t(3, shape),
    "row-scaled": row_scaled,
}


def eigenvalues(bands: tuple[int, int], slices: int = 1, size: int = 12) -> np.ndarray:
    rng = np.random.default_rng((*bands, slices, size))
    return np.sort(rng.lognormal(0, 1, (*bands, slices, size)), axis=-1)


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("bands", [(3, 3), (3, 7), (5, 4)])
def test_the_error_bar_is_that_of_the_loops(
    bands: tuple[int, int], slices: int, cutoff: str
) -> None:
    found = eigenvalues(bands, slices)
    windows = {(i, j): found[i, j].ravel() for i in range(bands[0]) for j in range(bands[1])}
    known = plain_jackknife.standard_error(
        windows, lambda pool: plain_farms.fit(pool, cutoff).alpha
    )
    ours = alpha_standard_error(found, np.zeros(found.shape, dtype=bool), CUTOFFS[cutoff])
    assert ours == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_windows_that_do_not_fill_a_grid_have_the_error_bar_of_the_loops(cutoff: str) -> None:
    grid = eigenvalues((4, 5), 2)
    places = [(0, 0), (3, 4), (1, 2), (2, 1), (0, 3), (3, 0), (1, 4)]
    row, column = np.transpose(places)
    found = grid[row, column]
    known = plain_jackknife.standard_error(
        {place: grid[place].ravel() for place in places},
        lambda pool: plain_farms.fit(pool, cutoff).alpha,
    )
    zero = np.zeros(found.shape, dtype=bool)
    assert error_of_windows(found, zero, row, column, CUTOFFS[cutoff]) == pytest.approx(
        known, rel=1e-9
    )


def test_zeros_stay_out_of_every_refit() -> None:
    found = eigenvalues((3, 4))
    zero = np.zeros(found.shape, dtype=bool)
    zero[..., :3] = True
    windows = {(i, j): found[i, j, 0, 3:] for i in range(3) for j in range(4)}
    known = plain_jackknife.standard_error(
        windows, lambda pool: plain_farms.fit(pool, "median").alpha
    )
    assert alpha_standard_error(found, zero, Median()) == pytest.approx(known, rel=1e-9)
    assert known != pytest.approx(
        alpha_standard_error(found, ~np.ones_like(zero), Median()), rel=1e-3
    )


@pytest.mark.parametrize("bands", [(MAX_BANDS + 1, 3), (40, 3), (33, 35)])
def test_many_bands_are_merged_into_few(bands: tuple[int, int]) -> None:
    found = eigenvalues(bands, size=4)
    group = [[i * min(count, MAX_BANDS) // count for i in range(count)] for count in bands]
    windows: dict[tuple[int, int], list[float]] = {}
    for i, row in enumerate(group[0]):
        for j, column in enumerate(group[1]):
            windows.setdefault((row, column), []).extend(found[i, j].ravel())
    sizes = {len([i for i in group[0] if i == g]) for g in set(group[0])}
    assert max(sizes) - min(sizes) <= 1
    known = plain_jackknife.standard_error(
        windows, lambda pool: plain_farms.fit(pool, "median").alpha
    )
    ours = alpha_standard_error(found, np.zeros(found.shape, dtype=bool), Median())
    assert ours == pytest.approx(known, rel=1e-9)


def test_a_part_that_cannot_be_fitted_gives_nan() -> None:
    found = np.ones((3, 3, 1, 4))
    assert math.isnan(alpha_standard_error(found, np.zeros(found.shape, dtype=bool), Median()))
    assert math.isnan(alpha_standard_error(found, np.ones(found.shape, dtype=bool), Median()))


@pytest.mark.parametrize("placement", ["tile", "grid:3", "grid:7", "step:32"])
def test_the_error_bar_does_not_depend_on_the_placement(placement: str) -> None:
    matrix = np.random.default_rng(1).standard_t(4, (192, 256))
    known = tail_fit(matrix, Spec(window=64, placement="tile")).alpha_se
    assert known > 0
    assert tail_fit(matrix, Spec(window=64, placement=placement)).alpha_se == pytest.approx(
        known, rel=1e-6
    )


def test_kernel_slices_of_one_position_are_left_out_together() -> None:
    """The same slice nine times over carries no more information than once."""
    matrix = np.random.default_rng(2).standard_normal((192, 192))
    one, nine = (
        tail_fit(m, Spec(window=64)).alpha_se for m in (matrix, np.repeat(matrix[None], 9, axis=0))
    )
    assert nine == pytest.approx(one, rel=0.05)


def test_too_few_windows_say_so() -> None:
    thin = tail_fit(np.random.default_rng(3).standard_normal((40, 40)), Spec(window="whole"))
    assert thin.alpha_se > 0
    fixed = tail_fit(
        np.random.default_rng(3).standard_normal((64, 64)), Spec(window=64, cutoff="fixed:30")
    )
    assert math.isnan(fixed.alpha_se)
    assert (
        fixed.reason
        == "no error bar: a fixed xmin means something else in the smaller windows that it needs"
    )


def test_a_layer_that_is_zero_outside_one_band_of_the_disjoint_windows_gets_no_error_bar() -> None:
    """Of the seven bands of 32 rows in 255 the third begins at row 74; without it nothing is
    left."""
    matrix = np.zeros((255, 255))
    matrix[74:105] = np.random.default_rng(0).standard_normal((31, 255))
    fit = tail_fit(matrix, Spec(window=64))
    assert fit.status == "ok"
    assert math.isnan(fit.alpha_se)
    assert "no error bar: some windows have no tail of their own" in fit.reason


def ratio_to_spread(
    law: str, shape: tuple[int, int], window: int, cutoff: str, draws: int
) -> float:
    """Mean error bar over the standard deviation of alpha, over independent draws of the matrix."""
    fits = [
        tail_fit(
            LAWS[law](np.random.default_rng((seed, *shape)), shape),
            Spec(window=window, cutoff=cutoff),
        )
        for seed in range(draws)
    ]
    return float(
        np.mean([fit.alpha_se for fit in fits]) / np.std([fit.alpha for fit in fits], ddof=1)
    )


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("shape", "window"), SHAPES)
def test_the_error_bar_is_calibrated(law: str, shape: tuple[int, int], window: int) -> None:
    """The standard deviation over 60 draws is itself known to a tenth."""
    assert 0.7 < ratio_to_spread(law, shape, window, "median", 60) < 1.6
