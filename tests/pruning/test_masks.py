"""Masks and scores against plain loops and laws: exact counts, even rows, groups."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from numpy.typing import NDArray

from spectail.errors import PruneError
from spectail.pruning import masks, scores
from spectail.pruning.methods import METHODS, Magnitude, SparseGPT, Wanda, as_method
from spectail.pruning.quotas import Pattern, Zeros, pattern_counts, zero_counts
from spectail.pruning.statistics import Squares
from tests.reference import plain_pruning as plain

SHAPES = some.tuples(some.integers(1, 9), some.integers(1, 12))


def _draw(seed: int, rows: int, cols: int, *, coarse: bool = False) -> Any:
    """A matrix and inputs; ``coarse`` makes many ties and zeros."""
    rng = np.random.default_rng(seed)
    weights, inputs = (
        rng.standard_normal((rows, cols)),
        rng.standard_normal((7, cols)) * rng.exponential(1, cols),
    )
    return (np.round(weights), np.ones((7, cols))) if coarse else (weights, inputs)


def _seen(inputs: NDArray[Any]) -> Squares:
    statistic = Squares(inputs.shape[1], torch.device("cpu"))
    statistic.add(torch.from_numpy(inputs))
    return statistic


@given(SHAPES, some.integers(0, 1000), some.floats(0, 1), some.booleans())
def test_magnitude_is_the_sorted_loop_ties_included(
    shape: Any, seed: Any, ratio: Any, coarse: Any
) -> None:
    weights, _ = _draw(seed, *shape, coarse=coarse)
    count = round(ratio * weights.size)
    mask = masks.smallest(scores.magnitude(torch.from_numpy(weights)), count)
    assert (mask.numpy() == plain.magnitude_mask(weights, count)).all()


@given(SHAPES, some.integers(0, 1000), some.booleans())
def test_wanda_is_the_loop_over_rows(shape: Any, seed: Any, coarse: Any) -> None:
    weights, inputs = _draw(seed, *shape, coarse=coarse)
    for each in range(shape[1] + 1):
        found = Wanda().apply(torch.from_numpy(weights), Zeros(each * shape[0]), _seen(inputs)).mask
        assert (found.numpy() == plain.wanda_mask(weights, inputs, each)).all()


@given(SHAPES, some.integers(0, 1000), some.floats(0, 1), some.booleans())
def test_rows_lose_the_same_within_one_and_the_total_is_exact(
    shape: Any, seed: Any, ratio: Any, coarse: Any
) -> None:
    weights, inputs = _draw(seed, *shape, coarse=coarse)
    count = round(ratio * weights.size)
    mask = Wanda().apply(torch.from_numpy(weights), Zeros(count), _seen(inputs)).mask
    assert int(mask.sum()) == count
    assert int(mask.sum(1).max() - mask.sum(1).min()) <= 1


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.7])
def test_the_variant_is_the_published_bisection_with_an_exact_count(sparsity: float) -> None:
    weights, inputs = _draw(3, 40, 60)
    published = plain.variant_mask(weights, inputs, sparsity)
    count = int(published.sum())
    found = (
        Wanda(variant=True)
        .apply(torch.from_numpy(weights), Zeros(count), _seen(inputs))
        .mask.numpy()
    )
    assert (found == published).all()
    assert np.ptp(found.sum(1)) > 1
    assert abs(published.mean() - sparsity) <= 1e-3


def test_a_row_of_zeros_goes_first_in_the_variant() -> None:
    weights = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert scores.removal_share(weights).tolist() == [[1.0, 1 / 6, 0.5], [0.0, 0.0, 0.0]]


@given(SHAPES, some.integers(0, 1000), some.integers(1, 4), some.data())
def test_groups_lose_their_smallest_and_the_rest_of_the_columns_nothing(
    shape: Any, seed: Any, m: Any, data: Any
) -> None:
    weights, _ = _draw(seed, *shape)
    n = data.draw(some.integers(0, m))
    mask = masks.smallest_of_groups(torch.from_numpy(weights).abs(), n, m).numpy()
    assert (mask == plain.pattern_mask(np.abs(weights), n, m)).all()
    assert mask.sum() == Pattern(n, m).zeros(*shape)


@given(some.lists(some.tuples(some.floats(0, 1), some.integers(1, 5000)), min_size=1, max_size=30))
def test_counts_are_within_one_of_each_ratio_and_exact_in_total(layers: Any) -> None:
    ratios, numels = zip(*layers, strict=True)
    counts = [quota.count for quota in zero_counts(ratios, numels)]
    wanted = [ratio * numel for ratio, numel in layers]
    assert all(abs(count - want) < 1 + 1e-5 for count, want in zip(counts, wanted, strict=True))
    assert all(0 <= count <= numel for count, numel in zip(counts, numels, strict=True))
    assert abs(sum(counts) - sum(wanted)) <= 0.5 + 1e-5 * len(layers)


def test_a_ratio_that_binary_cannot_hold_means_its_decimal() -> None:
    assert [quota.count for quota in zero_counts([0.7, 0.1, 0.29], [1000, 30, 100])] == [700, 3, 29]


@settings(max_examples=60)
@given(
    some.lists(
        some.tuples(some.floats(0, 1), some.integers(1, 40), some.integers(1, 40)),
        min_size=1,
        max_size=12,
    ),
    some.integers(1, 8),
)
def test_patterns_meet_the_total_from_below_as_near_as_one_step(layers: Any, m: Any) -> None:
    ratios, shapes = [x[0] for x in layers], [(x[1], x[2]) for x in layers]
    found = pattern_counts(ratios, shapes, m)
    zeros = sum(p.zeros(*shape) for p, shape in zip(found, shapes, strict=True))
    assert zeros <= sum(r * a * b for r, (a, b) in zip(ratios, shapes, strict=True)) + 1e-3 * len(
        layers
    )
    for pattern, ratio in zip(found, ratios, strict=True):
        assert pattern.m == m
        assert int(ratio * m - 1e-5) <= pattern.n <= int(np.ceil(ratio * m))


def test_uniform_half_is_two_of_four_everywhere() -> None:
    assert pattern_counts([0.5, 0.5], [(8, 16), (4, 8)], 4) == [Pattern(2, 4), Pattern(2, 4)]


PUBLISHED = {0.0: 1, 0.3: 461, 0.5: 769, 0.998: 1533}
"""Zeros that the published magnitude pruning makes of 1,536 weights (goldens,
``prune_magnitude``); at 1 it fails."""


@pytest.mark.parametrize("ratio", [*PUBLISHED, 1.0])
def test_the_published_code_prunes_one_weight_too_many(ratio: float) -> None:
    """It counts int(numel * ratio) and prunes one more; here the nearest whole number goes."""
    (quota,) = zero_counts([ratio], [1536])
    weights = torch.from_numpy(np.random.default_rng(0).standard_normal((32, 48)))
    zeros = int(Magnitude().apply(weights, quota).mask.sum())
    assert abs(zeros - ratio * 1536) <= 0.5
    assert ratio not in PUBLISHED or PUBLISHED[ratio] == int(1536 * ratio) + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pattern.parse("2/4"), "a pattern is written N:M, such as 2:4, not '2/4'"),
        (
            lambda: Pattern.parse("5:4"),
            "a pattern N:M has N zeros in every M weights, 0 <= N <= M, not 5:4",
        ),
        (
            lambda: as_method("lottery"),
            "method must be one of magnitude, wanda, wanda-variant, sparsegpt, not 'lottery'",
        ),
        (lambda: SparseGPT(block_size=0), "block_size must be a whole number of at least 1, not 0"),
        (
            lambda: SparseGPT(damping=-1.0),
            "damping must be a finite number of at least 0, not -1.0",
        ),
        (
            lambda: Wanda(variant=True).apply(torch.ones(2, 4), Pattern(2, 4), None),
            "wanda-variant lets rows differ, a pattern does not: use wanda with the pattern",
        ),
    ],
    ids=range(6),
)
def test_nonsense_is_refused_in_words(make: Callable[..., Any], message: str) -> None:
    with pytest.raises(PruneError) as error:
        make()
    assert str(error.value) == message


def test_all_methods_have_names() -> None:
    assert {type(method) for method in METHODS} == {Magnitude, Wanda, SparseGPT}
    assert all(as_method(method.name) is method for method in METHODS)
