"""Maps against their formulas in plain loops, the order they keep, and
what they make of equal alphas."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectail import presets
from spectail.allocation.maps import Linear, Log2, Map, Sigmoid, SquareRoot, Step, as_map, parse_map
from spectail.errors import AllocationError
from tests.reference import plain_allocation as plain

CASES = [
    # map, its text, a plain function of the alphas
    (Linear(0.7, 1.3), "linear:0.7:1.3", lambda a: plain.plain_linear(a, 0.7, 1.3)),
    (Linear(0.0, 2.0), "linear:1", lambda a: plain.plain_linear(a, 0.0, 2.0)),
    (Linear(1.0, 5.0), "llr", lambda a: plain.plain_linear(a, 1.0, 5.0)),
    (SquareRoot(), "sqrt", plain.plain_sqrt),
    (Log2(), "log2", plain.plain_log2),
    (Step(0.5, 1.5), "step:0.5:1.5", lambda a: plain.plain_step(a, 0.5, 1.5)),
    (Sigmoid(1.0, 1.0), "sigmoid:1", lambda a: plain.plain_sigmoid(a, 1, 1, 10)),
    (Sigmoid(0.25, 2.0, 4.0), "sigmoid:0.25:2:4", lambda a: plain.plain_sigmoid(a, 0.25, 2, 4)),
]
MAPS = [case[0] for case in CASES]
ALPHAS = st.lists(st.floats(1.01, 50), min_size=1, max_size=40)


def test_every_map_is_a_case() -> None:
    assert {type(how) for how in MAPS} == set(Map.__args__)


@pytest.mark.parametrize(("how", "text", "oracle"), CASES, ids=[c[1] for c in CASES])
def test_factors_are_those_of_the_formula(how: Any, text: str, oracle: Any) -> None:
    alphas = np.random.default_rng(0).uniform(1.2, 7, 50)
    np.testing.assert_allclose(how.factors(alphas), oracle(list(alphas)), rtol=1e-12)


@pytest.mark.parametrize(("how", "text", "oracle"), CASES, ids=[c[1] for c in CASES])
def test_text_and_back(how: Any, text: str, oracle: Any) -> None:
    assert parse_map(text) == how
    assert parse_map(str(how)) == how
    assert as_map(how) is how


@pytest.mark.parametrize("how", MAPS, ids=str)
@given(alphas=ALPHAS)
def test_factors_never_decrease_in_alpha_and_ties_share_one(how: Any, alphas: Any) -> None:
    factors = how.factors(np.array(alphas))
    assert np.isfinite(factors).all()
    assert (factors >= 0).all()
    order = np.argsort(alphas, kind="stable")
    assert (np.diff(factors[order]) >= -1e-14 * factors.max()).all()
    for a in set(alphas):
        assert np.unique(factors[np.array(alphas) == a]).size == 1


@pytest.mark.parametrize("how", MAPS, ids=str)
@pytest.mark.parametrize("n", [1, 3])
def test_equal_alphas_stand_out_nowhere(how: Any, n: int) -> None:
    np.testing.assert_allclose(how.factors(np.full(n, 2.5)), np.ones(n), rtol=1e-15)


def test_equal_alphas_stay_in_a_range_without_1() -> None:
    assert Linear(2.0, 3.0).factors(np.array([2.5]))[0] == 2.0
    assert Step(0.1, 0.9).factors(np.array([2.5]))[0] == 0.9


def test_ties_share_the_mean_of_their_steps() -> None:
    np.testing.assert_allclose(
        Step(0.0, 2.0).factors(np.array([3.0, 2.0, 3.0, 9.0])), [0.75, 0.0, 0.75, 1.5]
    )


def test_a_sigmoid_of_far_alphas_neither_overflows_nor_warns() -> None:
    np.testing.assert_allclose(Sigmoid(1.0, 1.0).factors(np.array([1.0, 1e6])), [10**-0.5, 10**0.5])


@pytest.mark.parametrize("name", presets.MAPS)
def test_published_names_are_maps(name: Any) -> None:
    assert str(parse_map(name)) == presets.MAPS[name]


@pytest.mark.parametrize(
    "text", ["", "linear", "linear:a", "linear:1:2:3", "sqrt:2", "cube", "sigmoid", "step"]
)
def test_a_text_that_is_no_map_is_answered_with_the_forms(text: str) -> None:
    with pytest.raises(
        AllocationError, match=r"map must be one of linear:EPS, .* or alphapruning, .*, not '"
    ):
        parse_map(text)


@pytest.mark.parametrize(
    "text", ["linear:1.5", "linear:2:1", "step:-1:1", "linear:nan", "linear:0:inf", "linear:0:0"]
)
def test_a_range_that_makes_no_sense_is_refused(text: str) -> None:
    kind = text.partition(":")[0]
    with pytest.raises(
        AllocationError,
        match=rf"{kind}:LOW:HIGH needs 0 <= LOW <= HIGH \(so EPS from 0 to 1\), not ",
    ):
        parse_map(text)


def test_bad_numbers_of_a_sigmoid() -> None:
    with pytest.raises(
        AllocationError, match=r"needs finite numbers of at least 0, not -1\.0, 1\.0, 10\.0"
    ):
        Sigmoid(-1.0, 1.0)
    with pytest.raises(AllocationError, match=r"at most 100, not 1\.0, 900\.0"):
        Sigmoid(1.0, 900.0)


def test_log2_refuses_alphas_that_published_code_turns_negative() -> None:
    with pytest.raises(
        AllocationError,
        match=r"map log2 needs alphas above 1, the smallest here is 0\.5; use linear or",
    ):
        Log2().factors(np.array([0.5, 2.0]))


def test_what_is_no_map() -> None:
    with pytest.raises(AllocationError, match=r"one of spectail\.maps or its short text, not 3"):
        as_map(3)  # type: ignore[arg-type]


def test_the_plain_step_ranks_from_below() -> None:
    assert plain.plain_step([5.0, 1.0], 0.0, 1.0) == [0.5, 0.0]
    assert math.isclose(plain.plain_sigmoid([2.0, 2.0], 1, 1, 10)[0], 1.0)
