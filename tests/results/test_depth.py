"""Correlations with depth: those of SciPy, partial ones by regression,
and no claim from few blocks."""

import itertools
import math
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from spectail.results.depth import (
    RankCorrelation,
    alpha_with_depth,
    depth_correlations,
    depths,
    rank_correlation,
)
from tests.allocation.conftest import layer, unmeasured

Array: TypeAlias = NDArray[np.float64]


def by_regression(x: Array, y: Array, z: Array) -> float:
    """The correlation of the residuals of the ranks of x and y after a
    straight line over those of z."""
    ranks = [rankdata(values) for values in (x, y, z)]
    line = np.stack([np.ones_like(ranks[2]), ranks[2]], axis=1)
    left = [r - line @ np.linalg.lstsq(line, r, rcond=None)[0] for r in ranks[:2]]
    return float(np.corrcoef(left)[0, 1])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [4, 5, 9, 60])
def test_plain_and_partial_correlations_are_those_of_scipy_and_of_regression(
    n: int, ties: bool
) -> None:
    rng = np.random.default_rng(n)
    x, y, z = rng.standard_normal((3, n))
    x, y = x + z, y + z + 0.5 * x
    if ties:
        x, y, z = (np.round(v * (1 if n > 5 else 2)) for v in (x, y, z))
    plain = rank_correlation(x, y)
    assert plain is not None
    assert plain.rho == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    if n > 4:
        partial = rank_correlation(x, y, given=z)
        assert partial is not None
        assert partial.rho == pytest.approx(by_regression(x, y, z), abs=1e-9)
        assert (partial.n_blocks, partial.n_given) == (n, 1)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([], []),
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 3, 4], [5, 5, 5, 5]),
        # Equal but for rounding, as means over equal numbers are.
        ([1, 2, 3, 4], [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]),
        ([1, 2, 3, 4], [3e-5, 3e-5 + 1e-20, 3e-5, 3e-5]),
    ],
)
def test_too_few_blocks_or_no_spread_have_no_correlation(x: list[int], y: list[float]) -> None:
    assert rank_correlation(x, y) is None
    assert rank_correlation(y, x) is None
    assert depth_correlations(x, y) is None


def test_small_numbers_that_do_differ_have_one() -> None:
    found = rank_correlation(range(5), [1e-7, 3e-7, 2e-7, 5e-7, 4e-7])
    assert found is not None
    assert found.rho == pytest.approx(0.8)


def test_a_partial_correlation_needs_five_blocks_and_something_that_is_left() -> None:
    x, z = [1, 3, 2, 5, 4, 6], [1, 2, 3, 4, 5, 6]
    assert rank_correlation(x[:4], [2, 1, 4, 3], given=z[:4]) is None
    assert rank_correlation(x, z, given=z) is None
    assert rank_correlation(z, x, given=np.negative(z)) is None
    assert rank_correlation(x, [6, 1, 2, 3, 5, 4], given=z) is not None


@pytest.mark.parametrize("n", [4, 5, 6])
def test_what_chance_gives_in_one_order_of_twenty_is_not_clear(n: int) -> None:
    """Over all orders of few blocks, at most 5 % may be called a trend."""
    found = [rank_correlation(range(n), order) for order in itertools.permutations(range(n))]
    assert None not in found
    assert sum(x.clear for x in found if x is not None) <= 0.05 * math.factorial(n)


@pytest.mark.parametrize("n", [8, 32])
def test_five_percent_of_unrelated_numbers_look_clear_and_the_interval_holds_the_truth(
    n: int,
) -> None:
    rng = np.random.default_rng(n)
    draws, clear, partial, covered = 500, 0, 0, 0
    # The rank correlation of two normal variables of correlation 0.8.
    truth = 6 / math.pi * math.asin(0.8 / 2)
    for _ in range(draws):
        x, y, z = rng.standard_normal((3, n))
        unrelated = rank_correlation(x, y)
        assert unrelated is not None
        clear += unrelated.clear
        given = rank_correlation(x + z, y + z, given=z)
        partial += given is not None and given.clear
        related = rank_correlation(x, 0.8 * x + 0.6 * y)
        assert related is not None
        low, high = related.interval()
        covered += low <= truth <= high
    assert 0.01 < clear / draws < 0.08
    assert 0.005 < partial / draws < 0.08
    assert 0.92 < covered / draws < 1


def test_intervals_hold_their_number_widen_with_level_and_narrow_with_blocks() -> None:
    for rho in (-1.0, -0.7, 0.0, 0.3, 0.95, 1.0):
        for n in (4, 6, 30):
            low, high = RankCorrelation(rho, n).interval()
            assert -1 <= low <= rho <= high <= 1
            wide = RankCorrelation(rho, n).interval(0.99)
            assert wide[0] <= low
            assert wide[1] >= high
            fewer = RankCorrelation(rho, n + 1, 1).interval()
            assert fewer == pytest.approx((low, high))
    assert not RankCorrelation(0.3, 6).clear
    assert not RankCorrelation(1.0, 4).clear
    assert RankCorrelation(0.6, 30).clear
    assert RankCorrelation(-0.6, 30).clear


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (["model.layers.10", "model.layers.2"], [10, 2]),
        (
            ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"],
            [0, 1, 0, 1],
        ),
        (["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0"], [0, 1, 2, 3, 4]),
        (["net.layer2.1", "net.layer1.0", "other.layer1.3"], [2, 0, 3]),
        (["Encoder.encoderblock_3", "Encoder.encoderblock_12"], [3, 12]),
        (["lm_head"], []),
    ],
)  # fmt: skip
def test_depth_counts_in_each_stack_and_on_through_stages(
    units: list[str], expected: list[int]
) -> None:
    assert list(depths(units).values()) == expected


def test_alpha_with_depth_takes_block_means_and_kinds_out_and_ignores_what_has_no_alpha() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(8)
    layers = [layer("model.embed_tokens", 9.0), layer("lm_head", 1.0)]
    for b in range(8):
        layers.append(layer(f"model.layers.{b}.self_attn.q_proj", 2.0 + noise[b]))
        # A kind of far larger alpha that only later blocks hold is no trend.
        if b > 3:
            layers.append(layer(f"model.layers.{b}.mlp.up_proj", 20.0 + noise[b]))
        layers.append(layer(f"model.layers.{b}.self_attn.k_proj", 50.0 - 9 * b, comparable=False))
        layers.append(unmeasured(f"model.layers.{b}.mlp.gate"))
    # The mean of each kind: of q over all blocks, of up over the last four.
    expected = [
        noise[b] - noise.mean()
        if b < 4
        else noise[b] - (noise.mean() + noise[4:].mean()) / 2
        for b in range(8)
    ]  # fmt: skip
    found = alpha_with_depth(layers)
    assert found is not None
    assert found.rho == pytest.approx(spearmanr(range(8), expected).statistic)
    assert found.n_blocks == 8
    assert alpha_with_depth(layers[:11]) is None
    assert alpha_with_depth([]) is None


def test_what_is_made_from_the_measured_numbers_alone_is_compared_with_depth() -> None:
    rng = np.random.default_rng(1)
    alpha: Any = np.arange(24) + 4 * rng.standard_normal(24)
    for values, order in (
        (np.sqrt(alpha + 20), "in the order of alpha"),
        (-alpha, "in the reverse order of alpha"),
    ):
        found = depth_correlations(range(24), values, alpha)
        assert found is not None
        first, second = found.describe("the ratios")
        assert first.startswith("The ratios rise" if values[-1] > values[0] else "The ratios fall")
        assert order in second
        assert f"depth is {spearmanr(alpha, range(24)).statistic:.2f}" in second
        assert "Given" not in second


def test_other_values_say_what_each_explains_given_the_other() -> None:
    rng = np.random.default_rng(2)
    depth: Any = np.arange(24)
    alpha: Any = rng.standard_normal(24)
    found = depth_correlations(depth, depth + 5 * alpha, alpha, name="outlier percent")
    assert found is not None
    text = " ".join(found.describe())
    assert found.values_depth_given_measured is not None
    assert found.values_measured_given_depth is not None
    given_depth, given_alpha = (
        found.values_measured_given_depth.rho,
        found.values_depth_given_measured.rho,
    )
    assert given_depth == pytest.approx(by_regression(depth + 5 * alpha, alpha, depth))
    assert given_alpha == pytest.approx(by_regression(depth + 5 * alpha, depth, alpha))
    assert f"Given depth, outlier percent explains {100 * given_depth**2:.0f} % of the rest" in text
    assert f"Given outlier percent, depth explains {100 * given_alpha**2:.0f} % of the rest" in text
    unrelated = depth_correlations(depth, depth + rng.standard_normal(24), alpha)
    assert unrelated is not None
    assert "Given depth, alpha explains no clear part" in " ".join(unrelated.describe())
    line = depth_correlations(depth, depth, alpha)
    assert line is not None
    assert line.values_measured_given_depth is None
    assert "Given depth, alpha can explain nothing more." in " ".join(line.describe())


def test_a_straight_line_is_named_from_a_clear_correlation_of_080_on() -> None:
    rng = np.random.default_rng(3)
    depth: Any = np.arange(30)
    for noise in (1, 8, 20, 100):
        found = depth_correlations(depth, depth + noise * rng.standard_normal(30))
        assert found is not None
        [line] = found.describe()
        assert ("straight line" in line) == (abs(found.values_depth.rho) >= 0.8)
    few = depth_correlations(range(4), range(4))
    assert few is not None
    assert "straight line" not in few.describe()[0]


def test_stored_numbers_are_those_of_the_correlations() -> None:
    found = depth_correlations(range(6), [1, 2, 3, 5, 4, 6], [2, 1, 3, 4, 6, 5])
    assert found is not None
    stored = found.to_dict()
    low, high = found.values_depth.interval()
    assert stored["values_depth"] == {
        "rho": found.values_depth.rho,
        "low": low,
        "high": high,
        "n_blocks": 6,
    }
    assert stored["measured"] == "alpha"
    alone = depth_correlations(range(6), [1, 2, 3, 5, 4, 6])
    assert alone is not None
    without = alone.to_dict()
    assert (without["measured"], without["measured_depth"]) == (None, None)
