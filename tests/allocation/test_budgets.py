"""Water-filling: the budget exactly, within bounds, against bisection, in the order of the
factors."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from spectail.allocation.budgets import fill
from spectail.errors import AllocationError
from tests.reference.plain_allocation import filled


@st.composite
def problems(draw: Any) -> tuple[NDArray[Any], NDArray[Any], dict[str, Any]]:
    n = draw(st.integers(1, 30))
    factors = draw(st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), min_size=n, max_size=n))
    factors[draw(st.integers(0, n - 1))] = draw(st.floats(0.1, 10))
    numel = draw(st.lists(st.integers(1, 10**9), min_size=n, max_size=n))
    low = draw(st.floats(0, 0.5))
    high = draw(st.one_of(st.just(math.inf), st.floats(low, 1)))
    budget = low + draw(st.floats(0, 1)) * (min(high, 1) - low)
    return (
        np.array(factors),
        np.array(numel, dtype=float),
        {"budget": min(budget, high), "bounds": (low, high)},
    )


@settings(max_examples=400)
@given(problems())
def test_the_budget_is_met_within_the_bounds_and_in_order(problem: Any) -> None:
    factors, numel, asked = problem
    values = fill(factors, numel, **asked)
    low, high = asked["bounds"]
    assert abs(math.fsum(values * numel) / math.fsum(numel) - asked["budget"]) <= 1e-12 * max(
        1, asked["budget"]
    )
    assert (values >= low).all()
    assert (values <= high).all()
    assert (np.diff(values[np.argsort(factors, kind="stable")]) >= -1e-15 * values.max()).all()
    assert all(np.ptp(values[factors == f]) == 0 for f in set(factors))


@given(problems())
def test_as_bisection_finds_it(problem: Any) -> None:
    factors, numel, asked = problem
    factors = np.maximum(factors, 1e-6)
    found, expected = fill(factors, numel, **asked), filled(factors, numel, **asked)
    # A mean is known to some 1e-14, which leaves this much open in a unit of small weight.
    tolerance = 1e-7 * np.abs(expected) + 1e-12 + 1e-14 * numel.sum() / numel
    assert (np.abs(found - expected) <= tolerance).all()


def test_thousands_of_random_allocations_meet_the_budget() -> None:
    rng = np.random.default_rng(1)
    for _ in range(3000):
        n = rng.integers(1, 200)
        factors, numel = (
            rng.lognormal(0, rng.uniform(0, 3), n),
            rng.integers(1, 10**8, n).astype(float),
        )
        budget = rng.uniform(0, 0.998)
        values = fill(factors, numel, budget=budget, bounds=(0.0, 0.998))
        assert abs(values @ numel / numel.sum() - budget) < 1e-12
        assert values.min() >= 0
        assert values.max() <= 0.998


def test_the_excess_goes_to_the_others_in_the_ratio_of_their_factors() -> None:
    values = fill(
        np.array([1.0, 2.0, 10.0]), np.array([1.0, 1.0, 1.0]), budget=0.5, bounds=(0.0, 0.9)
    )
    np.testing.assert_allclose(values, [0.2, 0.4, 0.9])


def test_factors_of_zero_rise_together_when_all_others_are_full() -> None:
    values = fill(
        np.array([0.0, 0.0, 1.0]), np.array([1.0, 3.0, 4.0]), budget=0.75, bounds=(0.0, 1.0)
    )
    np.testing.assert_allclose(values, [0.5, 0.5, 1.0])


def test_rounding_at_the_upper_bound_does_not_keep_the_others_down() -> None:
    factors = np.array([1.875, 12507.0] + [0.0] * 23)
    np.testing.assert_allclose(
        fill(factors, np.ones(25), budget=0.75, bounds=(0.0, 0.75)), 0.75, rtol=1e-14
    )


@pytest.mark.parametrize("budget", [0.2, 0.9])
def test_a_budget_at_a_bound_gives_every_unit_the_bound(budget: float) -> None:
    values = fill(np.array([1.0, 2.0, 3.0]), np.ones(3), budget=budget, bounds=(0.2, 0.9))
    np.testing.assert_allclose(values, budget, rtol=1e-15)


def test_a_budget_of_nothing() -> None:
    assert (fill(np.array([1.0, 2.0]), np.ones(2), budget=0.0, bounds=(0.0, 0.9)) == 0).all()


def test_the_input_is_left_as_it_is() -> None:
    factors = np.array([0.0, 2.0, 1e-200])
    fill(factors, np.ones(3), budget=0.5, bounds=(0.0, 1.0))
    assert factors.tolist() == [0.0, 2.0, 1e-200]


@pytest.mark.parametrize("budget", [0.1, 0.95])
def test_bounds_that_cannot_meet_the_budget(budget: float) -> None:
    with pytest.raises(
        AllocationError,
        match=rf"values from 0.2 to 0.9 cannot have the mean {budget}: widen the bounds",
    ):
        fill(np.ones(2), np.ones(2), budget=budget, bounds=(0.2, 0.9))
