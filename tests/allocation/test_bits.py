"""Bits: the least error sum against every assignment, from below the budget,
whatever the sizes and gamma."""

import itertools
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st_

import spectail as st
from spectail.allocation import knapsack
from spectail.allocation.knapsack import choose
from spectail.errors import AllocationError
from spectail.results.records import Rounding
from tests.allocation.conftest import layer, llama, results, transformer, unmeasured
from tests.reference.plain_allocation import best_bits, bit_costs

alphaq = partial(st.targets.Bits, error="variance")
"""The published rule, whose errors follow from the variance."""


def _model(rng: Any, n: int, sizes: Any) -> list[Any]:
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
def test_no_assignment_has_a_smaller_error(sizes: list[int], gamma: float) -> None:
    rng = np.random.default_rng([len(sizes), int(gamma)])
    for choices in [(2, 3, 4, 8), (1, 4), (3,), (2, 4, 16)]:
        for _ in range(4):
            layers = _model(rng, 5, sizes)
            budget = float(rng.uniform(choices[0], choices[-1]))
            rule = alphaq(choices=choices, gamma=gamma)
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
def test_any_small_problem_against_every_assignment(data: Any) -> None:
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
def test_costs_that_are_small_beside_the_largest_count_too(sizes: list[int]) -> None:
    costs = np.array([0.0, 1.0, 5.68e7, 0.0, 5.97e7])[:, None] * 4.0 ** -np.array([1.0, 6.0])
    picks, gap = choose(costs, np.outer(sizes, [1, 6]), int(5.75 * sum(sizes)))
    assert picks.tolist() == [1, 1, 0, 1, 1]
    assert gap == 0


def test_the_integer_program_beats_the_greedy_walk_where_sizes_differ() -> None:
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


def test_a_solver_that_stops_early_leaves_a_gap_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(knapsack, "TIME_LIMIT", 0.0)
    rng = np.random.default_rng(5)
    told = []
    for _ in range(8):
        layers = _model(rng, 40, np.arange(1000, 2000))
        allocation = st.allocate(results(*layers), target=alphaq(gamma=1), budget=3.3)
        assert allocation.realised <= 3.3
        told += [
            remark
            for remark in allocation.deviations
            if remark.startswith("The solver stopped early")
        ]
    assert told


def test_heavy_tails_get_more_bits_at_equal_variance_and_size() -> None:
    layers = [layer(f"layers.{i}.linear", 1.5 + 0.3 * i) for i in range(12)]
    allocation = st.allocate(results(*layers), target=alphaq(gamma=10), budget=3.5)
    widths = list(allocation.values())
    assert widths == sorted(widths, reverse=True)
    assert set(widths) <= {2.0, 3.0, 4.0, 8.0}
    assert len(set(widths)) > 1
    assert allocation.deviations == ()


def test_alpha_does_not_matter_at_gamma_0() -> None:
    rng = np.random.default_rng(0)
    layers = _model(rng, 20, [4096])
    other = [layer(x.name, 3.0, x.numel, weight_var=x.weight_var) for x in layers]
    rule = alphaq(gamma=0)
    first, second = (st.allocate(results(*x), target=rule, budget=3.25) for x in (layers, other))
    assert first == second


@pytest.mark.parametrize("gamma", [1, 20, 200])
def test_a_real_model_and_a_gamma_that_spans_many_decades(gamma: int) -> None:
    analysis = llama("llama-13b", "alpha_full")
    allocation = st.allocate(analysis, target=alphaq(gamma=gamma), budget=3.5)
    assert len(allocation) == 280
    assert 3.49 < allocation.realised <= 3.5
    assert allocation.deviations == (
        "Widths are weighted by numel; the published code counts modules.",
    )


def test_a_block_shares_one_width() -> None:
    allocation = st.allocate(
        transformer(), target="bits", budget=3.1, level="block", exclude=["*.gate"]
    )
    assert allocation.table.groupby("unit")["value"].nunique().max() == 1
    assert allocation.realised <= 3.1


@pytest.mark.parametrize("budget", [2, 8])
def test_a_budget_at_the_ends(budget: int) -> None:
    allocation = st.allocate(transformer(), target="bits", budget=budget, exclude=["*.gate"])
    assert set(allocation.values()) == {float(budget)}


@pytest.mark.parametrize("budget", [1.9, 8.1, math.nan])
def test_a_budget_that_no_choice_can_meet(budget: float) -> None:
    with pytest.raises(
        AllocationError,
        match=rf"a mean of {budget!r} bits cannot be had: the choices give 2 to 8",
    ):
        st.allocate(transformer(), target="bits", budget=budget, exclude=["*.gate"])


@pytest.mark.parametrize("choices", [(), (0, 4), (2.5,), (40,), 2.5])
def test_choices_that_are_no_widths(choices: Any) -> None:
    with pytest.raises(
        AllocationError,
        match=r"choices must be whole numbers of bits from 1 to 32, or names of formats, not ",
    ):
        st.targets.Bits(choices=choices)


@pytest.mark.parametrize("gamma", [-1.0, math.inf, math.nan])
def test_a_gamma_that_makes_no_sense(gamma: float) -> None:
    with pytest.raises(
        AllocationError, match=rf"gamma must be a finite number of at least 0, not {gamma!r}"
    ):
        st.targets.Bits(gamma=gamma)


def test_a_filled_alpha_brings_a_variance() -> None:
    layers = [
        layer("layers.0.a", 2.0),
        layer("layers.1.a", 3.0),
        unmeasured("layers.1.b", numel=64),
    ]
    allocation = st.allocate(results(*layers), target="bits", budget=4, missing="mean")
    assert len(allocation) == 3


def test_a_variance_that_is_not_known_is_named() -> None:
    layers = [layer("layers.0.a"), layer("layers.1.a", weight_var=math.nan)]
    with pytest.raises(
        AllocationError, match=r"bits need the variance of the weights, which layers\.1\.a lacks"
    ):
        st.allocate(results(*layers), target=alphaq(), budget=3)


def test_layers_without_variance_get_what_the_others_leave() -> None:
    layers = [
        layer("layers.0.a", weight_var=0.0),
        layer("layers.1.a", 2.0),
        layer("layers.2.a", 2.5),
    ]
    assert list(st.allocate(results(*layers), target=alphaq(), budget=10 / 3).values()) == [
        2.0,
        4.0,
        4.0,
    ]
    assert list(st.allocate(results(*layers), target=alphaq(), budget=4).values()) == [
        4.0,
        4.0,
        4.0,
    ]


def test_costs_below_the_smallest_float_do_not_starve_a_layer() -> None:
    layers = [layer("layers.0.a", 1.1), layer("layers.1.a", 9.0), layer("layers.2.a", 9.5)]
    allocation = st.allocate(results(*layers), target=alphaq(gamma=5000), budget=8)
    assert set(allocation.values()) == {8.0}


def _with_formats(name: str, cols: int, **formats: Any) -> Any:
    """A layer whose formats have these bits and errors."""
    found = tuple(Rounding(key.replace("_", "-"), *value) for key, value in formats.items())
    return layer(name, numel=1000, rows=1000 // cols, cols=cols, rounding=found)


def test_widths_go_by_the_range_in_groups_whatever_the_size() -> None:
    """Every assignment tried, with t^2 = range / 12 / (2^b - 1)^2 for each layer."""
    rng = np.random.default_rng(3)
    choices = (2, 3, 4, 8)
    for _ in range(6):
        ranges, numel = rng.lognormal(3, 0.5, 5), rng.integers(100, 3000, 5)
        layers = [
            layer(f"layers.{i}.linear", 2.0, int(n), group_range=float(r))
            for i, (r, n) in enumerate(zip(ranges, numel, strict=True))
        ]
        budget = float(rng.uniform(2, 6))
        allocation = st.allocate(results(*layers), target="bits", budget=budget)
        costs = [[r / 12 / (2**b - 1) ** 2 for b in choices] for r in ranges]
        found = sum(
            row[choices.index(int(b))] for row, b in zip(costs, allocation.values(), strict=True)
        )
        assert allocation.realised <= budget
        assert allocation.deviations == ()
        best = best_bits(costs, numel.tolist(), choices=choices, budget=budget)
        assert found == pytest.approx(best, rel=1e-9)


def test_small_layers_get_more_bits_as_theirs_cost_less() -> None:
    layers = [layer(f"layers.{i}.linear", numel=n) for i, n in enumerate((640, 64000, 64000))]
    widths = list(st.allocate(results(*layers), target="bits", budget=3.1).values())
    assert widths[0] > max(widths[1:])


def test_gamma_gives_heavy_tails_more_bits() -> None:
    layers = [layer(f"layers.{i}.linear", 1.5 + 0.3 * i, group_range=25.0) for i in range(12)]
    flat = list(st.allocate(results(*layers), target="bits", budget=3.5).values())
    rule = st.targets.Bits(gamma=10)
    by_alpha = list(st.allocate(results(*layers), target=rule, budget=3.5).values())
    assert by_alpha == sorted(by_alpha, reverse=True)
    assert by_alpha != flat


def test_an_analysis_without_errors_says_that_they_are_estimated() -> None:
    rng = np.random.default_rng(1)
    layers = [replace(x, group_range=math.nan) for x in _model(rng, 6, [4096, 1024])]
    found = st.allocate(results(*layers), target="bits", budget=3.3)
    published = st.allocate(results(*layers), target=alphaq(), budget=3.3)
    assert dict(found) == dict(published)
    assert any("measures no quantisation errors" in remark for remark in found.deviations)
    assert not any("measures no" in remark for remark in published.deviations)


def test_one_layer_without_its_error_is_named() -> None:
    layers = [layer("layers.0.a"), layer("layers.1.a", group_range=math.nan)]
    with pytest.raises(
        AllocationError, match=r"bits need the range in groups of the weights, which layers\.1\.a"
    ):
        st.allocate(results(*layers), target="bits", budget=3)


@settings(deadline=None, max_examples=40)
@given(st_.data())
def test_formats_of_any_size_and_error_against_every_assignment(data: Any) -> None:
    """Errors need neither fall nor be convex in the size; some layers lack some formats."""
    n, m = data.draw(st_.integers(1, 4)), data.draw(st_.integers(1, 4))
    layers = []
    for i in range(n):
        own = data.draw(st_.sets(st_.integers(0, m - 1), min_size=1))
        own = own | {0}
        formats = {
            f"f{k}": (
                data.draw(st_.integers(1000, 9000)) / 1000,
                data.draw(st_.one_of(st_.just(0.0), st_.floats(1e-6, 1.0))),
            )
            for k in range(m)
            if k in own or i == 0
        }
        layers.append(_with_formats(f"layers.{i}.a", 10, **formats))
    tables = [{r.format: (round(r.bits * 1000), r.error) for r in x.rounding} for x in layers]
    low = sum(min(size for size, _ in t.values()) for t in tables) / (1000 * n)
    high = sum(max(size for size, _ in t.values()) for t in tables) / (1000 * n)
    budget = data.draw(st_.floats(low, high))
    rule = st.targets.Bits(choices=tuple(f"f{k}" for k in range(m)))
    found = st.allocate(results(*layers), target=rule, budget=budget)
    picked = [t[share.format] for t, share in zip(tables, found.shares, strict=True)]
    assert [size / 1000 for size, _ in picked] == list(found.values())
    # The mean is compared as a float, as a caller would.
    total = 1000 * n
    assert sum(size for size, _ in picked) / total <= budget
    best = min(
        math.fsum(error for _, error in combination)
        for combination in itertools.product(*(t.values() for t in tables))
        if sum(size for size, _ in combination) / total <= budget
    )
    assert math.fsum(error for _, error in picked) == pytest.approx(best, rel=1e-9, abs=1e-15)


def test_formats_keep_their_names_in_the_file(tmp_path: Path) -> None:
    formats = {"q4-k": (4.5, 0.005), "fp8": (8.03, 0.0007)}
    layers = [_with_formats(f"layers.{i}.a", 10, **formats) for i in range(3)]
    rule = st.targets.Bits(choices=("q4-k", "fp8"))
    allocation = st.allocate(results(*layers), target=rule, budget=6)
    path = allocation.save(tmp_path / "bits.json")
    again = st.Allocation.load(path)
    assert again == allocation
    assert sorted(again.table["format"]) == ["fp8", "q4-k", "q4-k"]
    assert allocation.settings["choices"] == ["q4-k", "fp8"]


def test_formats_that_were_not_measured_are_refused() -> None:
    layers = [_with_formats("layers.0.a", 10, int4=(4.25, 0.01)), layer("layers.1.a", numel=1000)]
    with pytest.raises(AllocationError, match=r"whose errors the analysis has: int4, not 'q9_k'"):
        st.allocate(results(*layers), target=st.targets.Bits(choices=("int4", "q9_k")), budget=4.25)
    with pytest.raises(AllocationError, match=r"none of the formats suits layers\.1\.a, for k-q"):
        st.allocate(results(*layers), target=st.targets.Bits(choices="int4"), budget=4.25)  # type: ignore[arg-type]
    with pytest.raises(AllocationError, match=r"run spectail analyze with --quantization-errors"):
        st.allocate(results(layers[1]), target=st.targets.Bits(choices="int4"), budget=4.25)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", ["absolute", "", 3])
def test_an_error_that_is_none(error: Any) -> None:
    with pytest.raises(AllocationError, match=r"error must be one of measured, variance, not "):
        st.targets.Bits(error=error)


def test_the_variance_says_nothing_about_formats() -> None:
    with pytest.raises(AllocationError, match="error variance estimates the error of a width"):
        st.targets.Bits(error="variance", choices=("int4",))


def test_numbers_of_numpy_are_numbers() -> None:
    rule, budget = st.targets.Bits(choices=tuple(np.array([2, 4]))), cast(Any, np.float32(3))
    allocation = st.allocate(transformer(), target=rule, budget=budget, exclude=["*.gate"])
    assert allocation.settings["choices"] == [2, 4]
    assert allocation.budget == 3.0
