"""The null: Marchenko-Pastur against quadrature and dense simulation, and what
Gaussian matrices really show."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from spectail.core.cutoffs import Cutoff, Fixed, HistogramPeak, KSMinimum, Median, TopFraction
from spectail.core.measure import tail_fit
from spectail.core.null import marchenko_pastur_alpha, marchenko_pastur_density
from spectail.core.spec import Spec
from spectail.core.tails import fit_from
from spectail.core.windows import Window
from tests.reference import random_matrices

RATIOS = [1.0, 0.8, 0.5, 0.25, 0.1]
SMOOTH = [Median(), TopFraction(0.1)]
SHAPES = [(16, 1), (16, 4), (32, 1.5), (32, 4), (64, 1), (64, 2), (128, 1)]
LARGE = [(128, 4), (256, 1), (256, 2), (512, 1)]
DRAWS = 40


@pytest.mark.parametrize("ratio", RATIOS)
def test_the_density_is_the_law_and_sums_to_one(ratio: float) -> None:
    low, high = random_matrices.edges(ratio)
    x = np.linspace(low - 0.1, high + 0.1, 57)
    known = [random_matrices.density(value, ratio) for value in x]
    assert marchenko_pastur_density(x, ratio) == pytest.approx(known, rel=1e-12)
    assert 9 * marchenko_pastur_density(9 * x, ratio, variance=9.0) == pytest.approx(
        known, rel=1e-9
    )
    assert random_matrices.mass_above(low, ratio) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.1, 0.02])
def test_alpha_of_the_top_is_that_of_quadrature(ratio: float, fraction: float) -> None:
    known = random_matrices.alpha_of_top(fraction, ratio)
    assert marchenko_pastur_alpha(ratio, fraction=fraction) == pytest.approx(known, rel=1e-3)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("xmin", [0.3, 1.0, 1.7])
def test_alpha_above_a_fixed_xmin_is_that_of_quadrature(ratio: float, xmin: float) -> None:
    if xmin < random_matrices.edges(ratio)[1]:
        known = random_matrices.alpha_above(xmin, ratio)
        assert marchenko_pastur_alpha(ratio, xmin=xmin) == pytest.approx(known, rel=1e-3)


def test_the_median_of_a_square_gives_2_12() -> None:
    assert marchenko_pastur_alpha(1.0, fraction=0.5) == pytest.approx(2.1217, abs=1e-3)


def test_an_xmin_above_the_law_has_no_null() -> None:
    assert math.isnan(marchenko_pastur_alpha(1.0, xmin=4.1))
    with pytest.raises(ValueError, match="give fraction or xmin"):
        marchenko_pastur_alpha(1.0)


@cache
def dense_pools(side: int, ratio: float, windows: int) -> list[np.ndarray]:
    rng = np.random.default_rng((side, int(4 * ratio), windows))
    return [
        random_matrices.pooled_eigenvalues(side, round(side * ratio), windows, rng)
        for _ in range(DRAWS)
    ]


def dense_alphas(side: int, ratio: float, windows: int, cutoff: Cutoff) -> np.ndarray:
    return np.array(
        [fit_from(pool, cutoff.start(pool)).alpha for pool in dense_pools(side, ratio, windows)]
    )


def window_of(side: int, ratio: float) -> Window:
    return Window(side, round(side * ratio))


@pytest.mark.parametrize("cutoff", SMOOTH, ids=str)
@pytest.mark.parametrize(
    ("side", "ratio"), [*SHAPES, *(pytest.param(*shape, marks=pytest.mark.slow) for shape in LARGE)]
)
def test_the_null_is_what_dense_gaussian_windows_show(
    side: int, ratio: float, cutoff: Cutoff
) -> None:
    alphas = dense_alphas(side, ratio, 9, cutoff)
    mean, _ = cutoff.null(window_of(side, ratio), 9, 1.0)
    # The mean of alpha, a reciprocal, lies above the reciprocal of the mean.
    finite_size = mean / side**2 + alphas.var() / (mean - 1)
    assert abs(mean - alphas.mean()) < 4 * alphas.std() / math.sqrt(DRAWS) + finite_size


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("cutoff", SMOOTH, ids=str)
@pytest.mark.parametrize(("side", "ratio"), [(16, 1), (32, 1), (20, 3)])
def test_the_null_is_exact_where_many_windows_leave_no_room_for_a_bias(
    side: int, ratio: float, cutoff: Cutoff, is_complex: bool
) -> None:
    rng = np.random.default_rng(side)
    shape = (300, side, round(side * ratio))
    alphas = []
    for _ in range(8):
        windows = rng.standard_normal(shape) + 1j * is_complex * rng.standard_normal(shape)
        squares = np.sort(np.linalg.svd(windows, compute_uv=False).ravel() ** 2)
        alphas.append(fit_from(squares, cutoff.start(squares)).alpha)
    mean, sd = cutoff.null(window_of(side, ratio), 300, 1.0, is_complex=is_complex)
    assert abs(mean - np.mean(alphas)) < 4 * sd / math.sqrt(8) + 2 / side**2 * mean


@pytest.mark.parametrize("cutoff", SMOOTH, ids=str)
def test_complex_matrices_spread_less(cutoff: Cutoff) -> None:
    """Their eigenvalues repel each other more: the spread is 0.71 times that of real matrices."""
    (_, real), (_, found) = (
        cutoff.null(Window(64, 64), 4, 1.0, is_complex=kind) for kind in (False, True)
    )
    assert 0.5 < found / real < 0.95


def test_a_random_convolution_of_many_windows_looks_random() -> None:
    """The median alpha of 64 x 64 real windows lies 0.009 below the limit of large ones."""
    gaps = []
    for seed in range(4):
        weights = np.random.default_rng(seed).standard_normal((9, 512, 512))
        fit = tail_fit(weights, Spec(window=64))
        gaps.append((fit.alpha - fit.alpha_null) / math.hypot(fit.alpha_se, fit.alpha_null_sd))
    assert abs(np.mean(gaps)) < 1


def test_the_spectrum_of_complex_weights_is_judged_by_complex_matrices() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4, 64, 64)) + 1j * rng.standard_normal((4, 64, 64))
    fit = tail_fit(weights, Spec(window=32))
    assert (fit.alpha_null, fit.alpha_null_sd) == Median().null(
        Window(32, 32), 16, 1.0, is_complex=True
    )


@pytest.mark.parametrize("cutoff", SMOOTH, ids=str)
@pytest.mark.parametrize("windows", [4, 9])
def test_the_spread_of_the_null_is_that_of_dense_windows(windows: int, cutoff: Cutoff) -> None:
    """Each spread comes from few draws: within a factor of 2.2 one by
    one, within 1.25 on the average."""
    shapes = [shape for shape in SHAPES if shape[0] >= 32]
    shares = []
    for side, ratio in shapes:
        _, spread = cutoff.null(window_of(side, ratio), windows, 1.0)
        shares.append(math.log(spread / dense_alphas(side, ratio, windows, cutoff).std(ddof=1)))
    assert np.max(np.abs(shares)) < math.log(2.2)
    assert abs(np.mean(shares)) < math.log(1.25)


@pytest.mark.parametrize(
    ("window", "windows", "cutoff"),
    [
        (Window(16, 5000), 1, Median()),
        (Window(1500, 18), 1, TopFraction(0.5)),
        (Window(24, 3000), 3, Median()),
        (Window(32, 32), 300, TopFraction(0.01)),
        (Window(16, 16), 400, TopFraction(0.002)),
        (Window(3, 3), 900, TopFraction(0.01)),
    ],
)
def test_the_null_of_long_windows_and_of_small_tails_is_that_of_dense_windows(
    window: Window, windows: int, cutoff: Cutoff
) -> None:
    """Scaled down, these windows have one or two eigenvalues, and one in the tail has no alpha."""
    mean, spread = cutoff.null(window, windows, 1.0)
    rng = np.random.default_rng(3)
    alphas = []
    for _ in range(40):
        draw = rng.standard_normal((windows, min(window), max(window)))
        values = np.sort(np.linalg.eigvalsh(draw @ draw.swapaxes(1, 2)), axis=None)
        alphas.append(fit_from(values, cutoff.start(values)).alpha)
    # 40 draws and as few as 12 in the null: each spread is known to 11 to 20 %; tails of few
    # values are skewed.
    assert abs(math.log(spread / np.std(alphas, ddof=1))) < math.log(1.7)
    if windows > 1:  # the law leaves out the bias of few eigenvalues, which is as large as that
        assert abs(mean - np.mean(alphas)) < spread


@pytest.mark.parametrize("cutoff", [KSMinimum(), HistogramPeak()], ids=str)
@pytest.mark.parametrize(("side", "ratio"), [(32, 1), (64, 1.5), (64, 2)])
def test_a_simulated_null_holds_the_dense_alphas(side: int, ratio: float, cutoff: Cutoff) -> None:
    """These alphas scatter widely and lopsidedly, so only the bulk of them is asked for."""
    alphas = dense_alphas(side, ratio, 9, cutoff)
    mean, spread = cutoff.null(window_of(side, ratio), 9, 1.0)
    assert abs(mean - np.median(alphas)) < 2 * spread
    assert np.mean(np.abs(alphas - mean) < 3 * spread) > 0.8


def test_the_null_of_a_large_window_is_scaled_from_a_smaller_one() -> None:
    """The spread falls as 1 / (side * sqrt(windows))."""
    (_, small), (_, large), (_, many) = (
        Median().null(Window(side, side), count, 1.0)
        for side, count in [(256, 4), (1024, 4), (1024, 64)]
    )
    assert small / large == pytest.approx(4, rel=1e-6)
    assert large / many == pytest.approx(4, rel=0.8)


def test_the_null_of_many_windows_is_scaled_from_fewer() -> None:
    (_, drawn), (_, scaled) = (
        Median().null(Window(128, 128), count, 1.0) for count in (156, 15_600)
    )
    assert drawn / scaled == pytest.approx(10, rel=1e-6)


def test_the_null_of_a_fixed_xmin_knows_the_scale_of_the_weights() -> None:
    for variance in (1.0, 1e-4):
        mean, spread = Fixed(4096 * variance).null(Window(2048, 4096), 9, variance)
        assert mean == pytest.approx(random_matrices.alpha_above(1.0, 0.5), rel=1e-3)
        assert math.isnan(spread)
    assert math.isnan(Fixed(1e9).null(Window(64, 64), 9, 1.0)[0])


@pytest.mark.parametrize("cutoff", [Median(), KSMinimum()], ids=str)
def test_a_null_repeats_with_the_seed_and_ignores_orientation(cutoff: Cutoff) -> None:
    first = cutoff.null(Window(32, 48), 4, 1.0, seed=3)
    assert cutoff.null(Window(48, 32), 4, 7.0, seed=3) == first
    assert cutoff.null(Window(32, 48), 4, 1.0, seed=4) != first
