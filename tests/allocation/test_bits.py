"""Bits: the least error sum against every assignment, from below the budget,
whatever the sizes and gamma."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st_

import spectail as st
from spectail.allocation import knapsack
from spectail.allocation.knapsack import choose
from spectail.errors import AllocationError
from tests.allocation.conftest import layer, llama, results, transformer, unmeasured
from tests.reference.plain_allocation import best_bits, bit_costs


def _model(rng, n, sizes):
    return [
        layer(
            f"layers.{i}.linear",
            float(rng.uniform(1.2, 6)),
            int(size),
            weight_var=float(rng.lognormal(-4, 1)),
        )
        for i, size in enumerate(rng.choice(sizes, n))
    ]


@pytest.mark.parametrize("sizes", [[4096], [4096, 1024, 12288], [999, 1000, 1017, 54321]], ids=str)
@pytest.mark.parametrize("gamma", [0.0, 1.0, 20.0])
def test_no_assignment_has_a_smaller_error(sizes, gamma):
    rng = np.random.default_rng([len(sizes), int(gamma)])
    for choices in [(2, 3, 4, 8), (1, 4), (3,), (2, 4, 16)]:
        for _ in range(4):
            layers = _model(rng, 5, sizes)
            budget = float(rng.uniform(choices[0], choices[-1]))
            rule = st.targets.Bits(choices=choices, gamma=gamma)
            allocation = st.allocate(results(*layers), target=rule, budget=budget)
            numel = [x.numel for x in layers]
            costs = bit_costs(
                [x.alpha for x in layers],
                [x.weight_var for x in layers],
                numel,
                choices=choices,
                gamma=gamma,
            )
            found = sum(
                row[choices.index(int(b))]
                for row, b in zip(costs, allocation.values(), strict=True)
            )
            assert allocation.realised <= budget
            assert found == pytest.approx(
                best_bits(costs, numel, choices=choices, budget=budget), rel=1e-9
            )


@settings(deadline=None, max_examples=60)
@given(st_.data())
def test_any_small_problem_against_every_assignment(data):
    n = data.draw(st_.integers(1, 6))
    choices = tuple(sorted(data.draw(st_.sets(st_.integers(1, 16), min_size=1, max_size=4))))
    numel = data.draw(st_.lists(st_.integers(1, 10**6), min_size=n, max_size=n))
    scales = data.draw(
        st_.lists(st_.one_of(st_.just(0.0), st_.floats(1e-12, 1e12)), min_size=n, max_size=n)
    )
    budget = data.draw(st_.floats(choices[0], choices[-1]))
    costs = np.array(scales)[:, None] * 4.0 ** -np.array(choices, dtype=float)
    sizes = np.outer(numel, choices)
    picks, gap = choose(costs, sizes, int(budget * sum(numel)))
    assert gap == 0
    assert sizes[range(n), picks].sum() / sum(numel) <= budget
    total = math.fsum(costs[range(n), picks])
    assert total <= best_bits(costs.tolist(), numel, choices=choices, budget=budget) * (1 + 1e-9)


@pytest.mark.parametrize("sizes", [[1, 1, 15, 1, 43], [1, 1, 20, 1, 38]])
def test_costs_that_are_small_beside_the_largest_count_too(sizes):
    costs = np.array([0.0, 1.0, 5.68e7, 0.0, 5.97e7])[:, None] * 4.0 ** -np.array([1.0, 6.0])
    picks, gap = choose(costs, np.outer(sizes, [1, 6]), int(5.75 * sum(sizes)))
    assert picks.tolist() == [1, 1, 0, 1, 1]
    assert gap == 0


def test_the_integer_program_beats_the_greedy_walk_where_sizes_differ():
    rng = np.random.default_rng(5)
    better = 0
    for _ in range(20):
        numel = rng.integers(10, 100, 8)
        costs = rng.lognormal(0, 1, 8)[:, None] * 4.0 ** -np.array([2.0, 3.0, 4.0])
        sizes, limit = np.outer(numel, [2, 3, 4]), int(3 * numel.sum())
        problem = knapsack._Problem(costs, sizes, limit)
        greedy = problem.total(knapsack._walk(problem)[0])
        exact = problem.total(choose(costs, sizes, limit)[0])
        assert exact <= greedy
        better += exact < greedy * (1 - 1e-9)
    assert better > 3


def test_a_solver_that_stops_early_leaves_a_gap_that_is_told(monkeypatch):
    monkeypatch.setattr(knapsack, "TIME_LIMIT", 0.0)
    rng = np.random.default_rng(5)
    told = []
    for _ in range(8):
        layers = _model(rng, 40, np.arange(1000, 2000))
        allocation = st.allocate(results(*layers), target="bits", budget=3.3)
        assert allocation.realised <= 3.3
        told += [
            remark
            for remark in allocation.deviations
            if remark.startswith("The solver stopped early")
        ]
    assert told


def test_heavy_tails_get_more_bits_at_equal_variance_and_size():
    layers = [layer(f"layers.{i}.linear", 1.5 + 0.3 * i) for i in range(12)]
    allocation = st.allocate(results(*layers), target=st.targets.Bits(gamma=10), budget=3.5)
    widths = list(allocation.values())
    assert widths == sorted(widths, reverse=True)
    assert set(widths) <= {2.0, 3.0, 4.0, 8.0}
    assert len(set(widths)) > 1
    assert allocation.deviations == ()


def test_alpha_does_not_matter_at_gamma_0():
    rng = np.random.default_rng(0)
    layers = _model(rng, 20, [4096])
    other = [layer(x.name, 3.0, x.numel, weight_var=x.weight_var) for x in layers]
    rule = st.targets.Bits(gamma=0)
    first, second = (st.allocate(results(*x), target=rule, budget=3.25) for x in (layers, other))
    assert first == second


@pytest.mark.parametrize("gamma", [1, 20, 200])
def test_a_real_model_and_a_gamma_that_spans_many_decades(gamma):
    analysis = llama("llama-13b", "alpha_full")
    allocation = st.allocate(analysis, target=st.targets.Bits(gamma=gamma), budget=3.5)
    assert len(allocation) == 280
    assert 3.49 < allocation.realised <= 3.5
    assert allocation.deviations == (
        "Widths are weighted by numel; the published code counts modules.",
    )


def test_a_block_shares_one_width():
    allocation = st.allocate(
        transformer(), target="bits", budget=3.1, level="block", exclude=["*.gate"]
    )
    assert allocation.table.groupby("unit")["value"].nunique().max() == 1
    assert allocation.realised <= 3.1


@pytest.mark.parametrize("budget", [2, 8])
def test_a_budget_at_the_ends(budget):
    allocation = st.allocate(transformer(), target="bits", budget=budget, exclude=["*.gate"])
    assert set(allocation.values()) == {float(budget)}


@pytest.mark.parametrize("budget", [1.9, 8.1, math.nan])
def test_a_budget_that_no_choice_can_meet(budget):
    with pytest.raises(
        AllocationError,
        match=rf"a mean of {budget!r} bits cannot be had: the choices give 2 to 8",
    ):
        st.allocate(transformer(), target="bits", budget=budget, exclude=["*.gate"])


@pytest.mark.parametrize("choices", [(), (0, 4), (2.5,), (40,), 2.5])
def test_choices_that_are_no_widths(choices):
    with pytest.raises(
        AllocationError,
        match=r"choices must be whole numbers of bits from 1 to 32, or names of formats, not ",
    ):
        st.targets.Bits(choices=choices)


@pytest.mark.parametrize("gamma", [-1.0, math.inf, math.nan])
def test_a_gamma_that_makes_no_sense(gamma):
    with pytest.raises(
        AllocationError, match=rf"gamma must be a finite number of at least 0, not {gamma!r}"
    ):
        st.targets.Bits(gamma=gamma)


def test_a_filled_alpha_brings_a_variance():
    layers = [
        layer("layers.0.a", 2.0),
        layer("layers.1.a", 3.0),
        unmeasured("layers.1.b", numel=64),
    ]
    allocation = st.allocate(results(*layers), target="bits", budget=4, missing="mean")
    assert len(allocation) == 3


def test_a_variance_that_is_not_known_is_named():
    layers = [layer("layers.0.a"), layer("layers.1.a", weight_var=math.nan)]
    with pytest.raises(
        AllocationError, match=r"bits need the variance of the weights, which layers\.1\.a lacks"
    ):
        st.allocate(results(*layers), target="bits", budget=3)


def test_layers_without_variance_get_what_the_others_leave():
    layers = [
        layer("layers.0.a", weight_var=0.0),
        layer("layers.1.a", 2.0),
        layer("layers.2.a", 2.5),
    ]
    assert list(st.allocate(results(*layers), target="bits", budget=10 / 3).values()) == [
        2.0,
        4.0,
        4.0,
    ]
    assert list(st.allocate(results(*layers), target="bits", budget=4).values()) == [4.0, 4.0, 4.0]


def test_costs_below_the_smallest_float_do_not_starve_a_layer():
    layers = [layer("layers.0.a", 1.1), layer("layers.1.a", 9.0), layer("layers.2.a", 9.5)]
    allocation = st.allocate(results(*layers), target=st.targets.Bits(gamma=5000), budget=8)
    assert set(allocation.values()) == {8.0}


def test_numbers_of_numpy_are_numbers():
    rule = st.targets.Bits(choices=tuple(np.array([2, 4])))
    allocation = st.allocate(transformer(), target=rule, budget=np.float32(3), exclude=["*.gate"])
    assert allocation.settings["choices"] == [2, 4]
    assert allocation.budget == 3.0
