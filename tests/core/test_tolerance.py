"""Windows one after the other: the order, the promise that is kept, and the spec that asks for
it."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from experiments.ensembles import gaussian, low_rank, row_scaled, student
from spectail.core import bands, jackknife
from spectail.core.cutoffs import Median, TopFraction
from spectail.core.farms import Farms
from spectail.core.jackknife import tail_alpha
from spectail.core.measure import tail_fit
from spectail.core.spec import Spec
from spectail.core.spectra import window_eigenvalues
from spectail.core.tolerance import (
    CONFIDENCE,
    FIRST,
    _change_of_the_rest,
    enough_windows,
    spread_order,
)
from spectail.core.windows import Grid, Tile, Window
from spectail.errors import SpecError
from tests.reference import plain_farms, plain_jackknife

TOLERANCE = 0.01


def test_the_order_takes_the_corners_of_a_grid_first_and_every_position_once() -> None:
    positions = Grid(3).positions(400, 400, Window(200, 200))
    order = list(spread_order(positions, Window(200, 200)))
    assert {positions[i] for i in order[:4]} == {(0, 0), (0, 200), (200, 0), (200, 200)}
    assert positions[order[4]] == (100, 100)
    assert sorted(order) == list(range(9))


@pytest.mark.parametrize(("rows", "cols"), [(400, 400), (400, 900), (900, 400)])
def test_a_dense_grid_is_sampled_fairly_and_as_its_transpose(rows: int, cols: int) -> None:
    """Edges first made alpha of SmolLM2 miss the tolerance three times as often."""
    window = Window(200, 200)
    positions, others = (Grid(15).positions(*s, window) for s in ((rows, cols), (cols, rows)))
    order = [positions[i] for i in spread_order(positions, window)]
    mirrored = [others[i][::-1] for i in spread_order(others, window)]
    assert sorted(order) == sorted(positions)
    # In a square matrix each window is followed by its mirror image instead.
    assert order == mirrored or rows == cols
    # How far from the middle the first windows are, relative to all.
    middle = np.array(positions).mean(axis=0)
    far = np.abs((np.array(order) - middle) / middle).mean(axis=1)
    assert far[:32].mean() == pytest.approx(far.mean(), rel=0.15)


@pytest.mark.parametrize(("rows", "cols"), [(512, 768), (1000, 300), (450, 320), (64, 640)])
def test_tiles_visit_every_band_once_before_any_is_visited_again(rows: int, cols: int) -> None:
    positions = Tile().positions(rows, cols, Window(64, 64))
    order = [positions[i] for i in spread_order(positions, Window(64, 64))]
    bands = [len({place[axis] for place in positions}) for axis in (0, 1)]
    for side, axis in ((bands[0], 0), (bands[1], 1)):
        first = [place[axis] for place in order[:side]]
        if side == min(bands):
            assert len(set(first)) == side
        # Bands along the longer side wait for their turn, but none is visited much more often.
        for taken in range(1, len(order) + 1):
            visits = Counter(place[axis] for place in order[:taken])
            assert max(visits.values()) <= math.ceil(taken / side) + 1


@pytest.mark.parametrize(("rows", "cols"), [(3840, 3840), (3840, 2560), (2560, 3840)])
def test_beyond_a_thousand_windows_the_order_is_scattered_and_still_that_of_the_transpose(
    rows: int, cols: int
) -> None:
    window = Window(64, 64)
    places, others = (Tile().positions(*shape, window) for shape in ((rows, cols), (cols, rows)))
    order = [places[i] for i in spread_order(places, window)]
    mirrored = [others[i][::-1] for i in spread_order(others, window)]
    assert sorted(order) == places
    if rows == cols:
        seen: set[tuple[int, int]] = set()
        for first, second in itertools.pairwise(order):
            seen.add(first)
            assert first[::-1] in seen or second == first[::-1]
    else:
        assert order == mirrored
    late = np.array(order[1000:1400]) / (rows, cols)
    assert abs(np.mean(np.prod(late - late.mean(axis=0), axis=1)) / np.prod(late.std(axis=0))) < 0.3
    assert np.allclose(late.mean(axis=0), 0.5, atol=0.1)


def test_ordering_the_windows_of_an_embedding_takes_seconds() -> None:
    places = Tile().positions(151_936, 1024, Window(64, 64))
    start = time.process_time()
    assert sum(1 for _ in spread_order(places, Window(64, 64))) == 37_984
    assert time.process_time() - start < 30  # four on one core; in proportion to the square: 130


@pytest.mark.parametrize("doubles", [[(0, 0)] * 5, [(0, 0), (3, 3), (0, 0)]])
def test_positions_that_repeat_come_once_each(doubles: list[tuple[int, int]]) -> None:
    assert sorted(spread_order(doubles, Window(4, 4))) == list(range(len(doubles)))


@pytest.mark.parametrize("placement", ["tile", "grid:9"])
@pytest.mark.parametrize(
    "shape", [(320, 320), (330, 330), (512, 512), (640, 320), (200, 520), (64, 700), (130, 330)]
)
def test_a_matrix_and_its_transpose_take_the_same_windows(
    shape: tuple[int, int], placement: str
) -> None:
    matrix = student(np.random.default_rng(5), shape)
    for tolerance in (0.05, 0.02, 0.01):
        spec = Spec(window=64, placement=placement, tolerance=tolerance)
        one, other = tail_fit(matrix, spec), tail_fit(matrix.T, spec)
        assert one.n_windows == other.n_windows
        assert other.alpha == pytest.approx(one.alpha, rel=1e-9)
        assert other.alpha_se == pytest.approx(one.alpha_se, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("cutoff", [Median(), TopFraction(0.1)])
def test_the_bound_is_the_textbook_interval(cutoff: Any) -> None:
    rng = np.random.default_rng(0)
    found = np.sort(rng.gamma(2.0, size=(6, 1, 50)), axis=-1)
    zero = np.zeros(found.shape, dtype=bool)
    without = [
        tail_alpha(np.sort(np.delete(found, i, axis=0), axis=None), cutoff) for i in range(6)
    ]
    variance = 5 / 6 * sum((alpha - np.mean(without)) ** 2 for alpha in without) * (1 - 6 / 100)
    t = 2.015048  # Student's t with 5 degrees of freedom, 90 % two-sided
    assert CONFIDENCE == 0.9
    expected = t * math.sqrt(variance) / tail_alpha(np.sort(found, axis=None), cutoff)
    assert _change_of_the_rest(found, zero, 100, cutoff, 0.0) == pytest.approx(expected, rel=1e-6)
    assert _change_of_the_rest(found, zero, 6, cutoff, 0.0) == 0.0
    # A larger spread of windows of independent entries takes the place of the jackknife's.
    spread = 3 * math.sqrt(variance)
    assert _change_of_the_rest(found, zero, 100, cutoff, spread) == pytest.approx(
        t * spread * math.sqrt(1 - 6 / 100) / tail_alpha(np.sort(found, axis=None), cutoff)
    )


@pytest.mark.parametrize("draw", [gaussian, student, row_scaled, low_rank])
def test_few_windows_stay_within_the_tolerance(draw: Any) -> None:
    within = []
    for seed in range(10):
        matrix = draw(np.random.default_rng(seed), (200, 320))
        everything = tail_fit(matrix, Spec(window=100, placement="grid:9"))
        few = tail_fit(matrix, Spec(window=100, placement="grid:9", tolerance=TOLERANCE))
        assert FIRST <= few.n_windows <= everything.n_windows == 81
        within.append(abs(few.alpha / everything.alpha - 1) <= TOLERANCE)
    assert sum(within) >= 9


def test_a_loose_tolerance_takes_four_windows_and_says_so_and_a_tight_one_takes_all() -> None:
    matrix = gaussian(np.random.default_rng(0), (256, 256))
    loose = tail_fit(matrix, Spec(window=128, placement="grid:6", tolerance=0.2))
    assert loose.n_windows == 4
    assert loose.reason == "4 of 36 windows: the others would move alpha by less than 20 %"
    tight = tail_fit(matrix, Spec(window=128, placement="grid:6", tolerance=1e-6))
    assert tight.reason == "all 36 windows were needed to reach a tolerance of 1e-06"
    assert tight.alpha == pytest.approx(
        tail_fit(matrix, Spec(window=128, placement="grid:6")).alpha, rel=1e-12
    )


def test_deciding_when_to_stop_takes_time_in_proportion_to_the_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refits = []

    def counted(values: np.ndarray, cutoff: Any) -> float:
        refits.append(values.size)
        return tail_alpha(values, cutoff)

    monkeypatch.setattr(jackknife, "tail_alpha", counted)
    matrix = gaussian(np.random.default_rng(0), (400, 400))
    fit = Farms().fit(
        torch.from_numpy(matrix)[None], Spec(window=16, tolerance=1e-6), None,
        convolution=False, error_bar=False, variance=1.0,
    )  # fmt: skip
    assert fit.n_windows == 625
    # With each window left out of all the others, it would be 2,000 and grow with the square.
    assert len(refits) < 600


def test_groups_of_windows_give_the_spread_of_single_ones() -> None:
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = np.sort(rng.gamma(2.0, size=(150, 1, 30)) * rng.gamma(9, size=(150, 1, 1)), axis=-1)
        window = np.repeat(np.arange(150), 30)
        order = np.argsort(found, axis=None, kind="stable")
        single = jackknife.jackknife_variance(found.ravel()[order], window[order], 150, Median())
        change = _change_of_the_rest(found, np.zeros(found.shape, bool), 10**9, Median(), 0.0)
        alpha = tail_alpha(np.sort(found, axis=None), Median())
        shares.append(change * alpha / (1.66 * math.sqrt(single)))
    assert np.mean(shares) == pytest.approx(1, abs=0.05)


def test_a_layer_of_one_window_says_so() -> None:
    fit = tail_fit(gaussian(np.random.default_rng(0), (70, 64)), Spec(window=64, tolerance=0.01))
    assert fit.n_windows == 2
    fit = tail_fit(gaussian(np.random.default_rng(0), (64, 64)), Spec(window=64, tolerance=0.01))
    assert fit.reason.startswith("its only window was measured")


def test_few_tiles_stay_within_the_tolerance() -> None:
    """At 90 % confidence at least 90 % of the draws of every law should keep the promise."""
    for draw in (gaussian, student, row_scaled, low_rank):
        kept, taken = [], []
        for seed in range(25):
            matrix = draw(np.random.default_rng((seed, 7)), (320, 512))
            everything = tail_fit(matrix, Spec(window=64))
            few = tail_fit(matrix, Spec(window=64, tolerance=0.02))
            assert FIRST <= few.n_windows <= everything.n_windows == 40
            kept.append(abs(few.alpha / everything.alpha - 1) <= 0.02)
            taken.append(few.n_windows)
        assert sum(kept) >= 22, draw.__name__
        assert np.mean(taken) < 20, draw.__name__


def test_windows_that_agree_by_chance_do_not_end_the_search() -> None:
    """Four windows with the same eigenvalues spread by nothing, four independent ones do not."""
    same = np.sort(np.random.default_rng(0).gamma(2.0, size=(1, 1, 64)))

    def eigenvalues(corners: list[tuple[int, int]]) -> np.ndarray:
        return np.repeat(same, len(corners), axis=0)

    positions = Tile().positions(640, 640, Window(64, 64))
    taken, _ = enough_windows(
        positions,
        Window(64, 64),
        eigenvalues,
        lambda found: np.zeros(found.shape, dtype=bool),
        Spec(tolerance=0.01),
    )
    assert len(taken) > 10


@pytest.mark.parametrize("shape", [(320, 512), (330, 520)])
def test_the_error_bar_comes_from_the_windows_that_were_taken(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: dict[tuple[int, int], np.ndarray] = {}

    def noted(matrices: Any, window: Window, corners: Any, **options: Any) -> Any:
        assert window == Window(64, 64)
        found = window_eigenvalues(matrices, window, corners, **options)
        solved.update(zip(corners, found[:, 0], strict=True))
        return found

    monkeypatch.setattr(bands, "window_eigenvalues", noted)
    matrix = row_scaled(np.random.default_rng(0), shape)
    fit = tail_fit(matrix, Spec(window=64, tolerance=0.02))
    assert len(solved) == fit.n_windows < 40
    known = plain_jackknife.standard_error(
        solved, lambda pool: plain_farms.fit(pool, "median").alpha
    )
    assert fit.alpha_se == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize("shape", [(64, 1280), (128, 1280), (1500, 210)])
def test_in_layers_of_one_or_two_bands_smaller_windows_inside_of_those_taken_give_the_error_bar(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    side = 64 if shape[0] < 300 else 100
    taken: list[tuple[int, int]] = []
    smaller: list[tuple[tuple[int, int], Window]] = []

    def noted(matrices: Any, window: Window, corners: Any, **options: Any) -> Any:
        if window.rows == side:
            taken.extend(corners)
        else:
            smaller.extend((corner, window) for corner in corners)
        return window_eigenvalues(matrices, window, corners, **options)

    monkeypatch.setattr(bands, "window_eigenvalues", noted)
    matrix = row_scaled(np.random.default_rng(0), shape)
    few = tail_fit(matrix, Spec(window=side, tolerance=0.04))
    assert few.n_windows == len(taken) < len(smaller)
    assert few.alpha_se > 0
    for (top, left), window in smaller:
        assert any(
            a <= top
            and top + window.rows <= a + side
            and b <= left
            and left + window.cols <= b + side
            for a, b in taken
        )


def test_a_tolerance_that_takes_all_windows_leaves_the_error_bar_as_it_is() -> None:
    for shape in [(64, 640), (310, 210), (320, 320)]:
        matrix = row_scaled(np.random.default_rng(0), shape)
        few, every = (
            tail_fit(matrix, Spec(window=64, tolerance=tolerance)) for tolerance in (1e-6, None)
        )
        assert (few.n_windows, few.alpha_se) == (every.n_windows, every.alpha_se)


@pytest.mark.parametrize("draw", [gaussian, student, row_scaled, low_rank])
def test_the_error_bar_of_few_tiles_is_the_spread_from_draw_to_draw(draw: Any) -> None:
    fits = [
        tail_fit(
            draw(np.random.default_rng((seed, 11)), (320, 384)), Spec(window=64, tolerance=0.03)
        )
        for seed in range(60)
    ]
    spread = np.std([fit.alpha for fit in fits], ddof=1)
    assert 0.6 < np.mean([fit.alpha_se for fit in fits]) / spread < 1.7


def test_the_same_weights_take_the_same_windows() -> None:
    matrix = torch.randn(300, 200, generator=torch.Generator().manual_seed(1))
    spec = Spec(window=100, placement="random:30", tolerance=0.01)
    first, second = tail_fit(matrix, spec), tail_fit(matrix, spec)
    assert (first.alpha, first.reason) == (second.alpha, second.reason)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tolerance": 0.0, "placement": "grid:5"},
            "tolerance must be a share of alpha above 0 and below 1, not 0.0",
        ),
        ({"tolerance": 1.5, "placement": "grid:5"}, "above 0 and below 1, not 1.5"),
        ({"tolerance": math.nan, "placement": "grid:5"}, "above 0 and below 1, not nan"),
        (
            {"tolerance": 0.01, "window": "whole"},
            "tolerance needs windows: window whole takes the whole matrix at once",
        ),
    ],
)
def test_a_tolerance_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Spec(**options)
