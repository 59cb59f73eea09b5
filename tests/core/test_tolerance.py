"""Windows one after the other: the order, the promise that is kept, and the spec that asks for
it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from experiments.ensembles import gaussian, low_rank, row_scaled, student
from spectail.core.cutoffs import Median, TopFraction
from spectail.core.jackknife import tail_alpha
from spectail.core.measure import tail_fit
from spectail.core.spec import Spec
from spectail.core.tolerance import CONFIDENCE, FIRST, _change_of_the_rest, spread_order
from spectail.core.windows import Grid, Window
from spectail.errors import SpecError

TOLERANCE = 0.01


def test_the_order_takes_the_corners_of_a_grid_first_and_every_position_once() -> None:
    positions = Grid(7).positions(400, 400, Window(200, 200))
    order = list(spread_order(positions))
    assert {positions[i] for i in order[:4]} == {(0, 0), (0, 200), (200, 0), (200, 200)}
    assert positions[order[4]] == (100, 100)
    assert sorted(order) == list(range(49))


@pytest.mark.parametrize("doubles", [[(0, 0)] * 5, [(0, 0), (3, 3), (0, 0)]])
def test_positions_that_repeat_come_once_each(doubles: list[tuple[int, int]]) -> None:
    assert sorted(spread_order(doubles)) == list(range(len(doubles)))


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
    assert _change_of_the_rest(found, zero, 100, cutoff) == pytest.approx(expected, rel=1e-6)
    assert _change_of_the_rest(found, zero, 6, cutoff) == 0.0


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
            {"tolerance": 0.01},
            "tolerance needs grid:K, step:S or random:N: tile takes no more windows than cover",
        ),
        (
            {"tolerance": 0.01, "window": "whole", "placement": "grid:5"},
            "grid:5 takes no windows at all",
        ),
    ],
)
def test_a_tolerance_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Spec(**options)
