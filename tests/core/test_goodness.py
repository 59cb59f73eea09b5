"""Power law or not: against the library powerlaw, SciPy, simulation, and samples whose law is
known."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, optimize, stats

from spectail.core.cutoffs import KSMinimum
from spectail.core.goodness import (
    LEVEL,
    GoodnessOfFit,
    exponential_terms,
    judge_tail,
    ks_p_value,
    lognormal_terms,
    normalised_ratio,
    power_law_terms,
    two_sided,
    verdict,
)
from spectail.core.tails import fit_from
from spectail.errors import SpecError
from tests.core.spectra_cases import spectrum

powerlaw = pytest.importorskip("powerlaw")
WIDE = {"alpha": [1.0, 1e4]}
"""The library stops at an exponent of 3 unless told."""
Array = NDArray[np.float64]


def pareto(n: int, exponent: float, seed: int) -> Array:
    return np.sort(5 * np.random.default_rng(seed).random(n) ** (-1 / (exponent - 1)))


def tail_of(kind: str, n: int, share: float) -> Array:
    found = spectrum(kind, n)
    return found[int((1 - share) * found.size) :]


def student_windows(n: int) -> Array:
    windows = np.random.default_rng(4).standard_t(3, (n // 64, 64, 64))
    return np.sort(np.linalg.svd(windows, compute_uv=False).ravel() ** 2)


CASES = {
    **{f"{kind} {share}": tail_of(kind, 2000, share)
       for kind in ("lognormal", "uniform", "gaussian windows")
       for share in (1.0, 0.5, 0.1)},
    **{f"exponential {share}": 1 + tail_of("exponential", 1000, share) for share in (1.0, 0.3)},
    "student windows": student_windows(2000)[-1000:],
    "student windows, ks": student_windows(2000)[KSMinimum().start(student_windows(2000)) :],
    **{f"pareto {exponent}": pareto(700, exponent, 3) for exponent in (1.5, 2.0, 4.0)},
}  # fmt: skip


def compared(tail: Array) -> tuple[Any, tuple[float, float], tuple[float, float]]:
    fit = powerlaw.Fit(tail, xmin=float(tail[0]), verbose=False, parameter_ranges=WIDE)
    pairs = [
        fit.distribution_compare("power_law", law, normalized_ratio=True)
        for law in ("lognormal", "exponential")
    ]
    return fit, *pairs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_the_library_powerlaw_agrees(case: str) -> None:
    """Its optimiser stops at about 1e-4 of a ratio.

    Left out is what it cannot compute: densities below 1e-307, which it raises to that (the
    exponential of a tail over many decades), and lognormals on their way to a power law, where
    it stops short or, 37 standard deviations out, its normalisation underflows: there the
    verdict must agree, not the digits.
    """
    tail = CASES[case]
    found = judge_tail(tail)
    fit, lognormal, exponential = compared(tail)
    assert found.ks == pytest.approx(fit.power_law.D, rel=1e-9)
    if np.min(exponential_terms(np.log(tail / tail[0])) - np.log(tail)) > -700:
        assert found.exponential_ratio == pytest.approx(exponential[0], rel=2e-3)
        assert found.exponential_p == pytest.approx(exponential[1], rel=0.1)
    if found.lognormal_ratio == 0:
        assert lognormal[1] > LEVEL
    else:
        assert found.lognormal_ratio == pytest.approx(lognormal[0], rel=2e-3)
        assert found.lognormal_p == pytest.approx(lognormal[1], rel=0.1)


def scipy_lognormal(logs: Array) -> float:
    """Greatest log-likelihood of a normal law above 0 by plain search from several starts."""

    def negative(at: Array) -> float:
        mean, sd = at[0], math.exp(at[1])
        return -float(np.sum(stats.norm.logpdf(logs, mean, sd) - stats.norm.logsf(0, mean, sd)))

    starts = [(logs.mean(), math.log(logs.std())), (-3.0, 0.5), (-30.0, 1.5)]
    options = {"maxiter": 1000, "maxfev": 1000, "xatol": 1e-7, "fatol": 1e-7}
    return max(
        -float(optimize.minimize(negative, x, method="Nelder-Mead", options=options).fun)
        for x in starts
    )


@pytest.mark.parametrize("case", CASES)
def test_no_lognormal_is_likelier_than_ours(case: str) -> None:
    logs = np.log(CASES[case] / CASES[case][0])
    ours, best = float(lognormal_terms(logs).sum()), scipy_lognormal(logs)
    assert ours >= best - 1e-6
    assert ours == pytest.approx(best, abs=0.05), (
        "a power law stands for the lognormals that come close to it"
    )


@pytest.mark.parametrize("law", [power_law_terms, exponential_terms, lognormal_terms])
def test_a_density_has_mass_one(law: Callable[[Array], Array]) -> None:
    samples: dict[Callable[[Array], Array], Array] = {
        power_law_terms: pareto(50_000, 2.0, 0),
        exponential_terms: 1 + spectrum("exponential", 50_000) / 1e4,
        lognormal_terms: tail_of("lognormal", 100_000, 0.5),
    }
    logs = np.log(samples[law] / samples[law][0])
    assert integrate.trapezoid(np.exp(law(logs)), logs) == pytest.approx(1, abs=1e-3)


def test_the_exponential_is_that_of_scipy() -> None:
    tail = CASES["uniform 0.5"]
    _, scale = stats.expon.fit(tail, floc=tail[0])
    expected = stats.expon.logpdf(tail, tail[0], scale) + np.log(tail)
    assert exponential_terms(np.log(tail / tail[0])) == pytest.approx(expected, rel=1e-9)


def test_a_lognormal_gives_its_own_parameters_back() -> None:
    sample = np.sort(np.random.default_rng(2).lognormal(1.0, 0.7, 200_000))
    tail = sample[sample > 2]
    logs = np.log(tail / tail[0])
    expected = stats.norm.logpdf(np.log(tail), 1.0, 0.7) - stats.norm.logsf(
        np.log(tail[0]), 1.0, 0.7
    )
    assert float(lognormal_terms(logs).sum()) == pytest.approx(float(expected.sum()), abs=5)


@pytest.mark.parametrize("n", [50, 130, 1000])
def test_the_p_value_is_uniform_under_a_power_law_with_xmin_given(n: int) -> None:
    """The table of quantiles, drawn again: shares at or below each level within four binomial
    errors."""
    rng = np.random.default_rng(n)
    chances = []
    for _ in range(4000):
        logs = np.sort(np.append(0.0, rng.exponential(0.4, n - 1)))
        chances.append(ks_p_value(fit_from(np.exp(logs), 0).ks, n))
    for level in (0.01, 0.05, 0.1, 0.5, 0.9):
        share = np.mean(np.array(chances) <= level)
        assert share == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 4000) + 0.01)


def test_the_p_value_falls_with_the_distance_without_a_step() -> None:
    chances = np.array([ks_p_value(d, 400) for d in np.linspace(0, 0.5, 2000)])
    assert chances[0] > 0.999
    assert np.all(np.diff(chances) <= 0)
    assert np.max(-np.diff(chances)) < 0.02
    assert chances[-1] < 1e-100
    assert ks_p_value(1.094 / math.sqrt(1e8), 10**8) == pytest.approx(0.05, abs=0.002), (
        "Stephens 1974"
    )


@pytest.mark.parametrize("exponent", [1.7, 2.5, 6.0])
def test_power_laws_with_their_xmin_searched_are_hardly_ever_ruled_out(exponent: float) -> None:
    """The search for xmin makes p too large: far fewer than the nominal tenth are ruled out."""
    found = []
    for seed in range(60):
        sample = pareto(1000, exponent, seed)
        found.append(judge_tail(sample[KSMinimum().start(sample) :]))
    judged = [x for x in found if math.isfinite(x.ks_p)]
    assert len(judged) > 45
    assert sum(x.ks_p <= LEVEL for x in judged) <= 2
    assert all(x.lognormal_ratio <= 0 for x in judged), (
        "some lognormal is as close as one likes to any power law"
    )
    assert sum(x.lognormal_p <= LEVEL for x in judged) <= 2


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            "student windows",
            "power law ruled out (p < 0.001): lognormal and exponential fit better",
        ),
        ("uniform 0.5", "power law ruled out (p < 0.001): lognormal and exponential fit better"),
        (
            "gaussian windows 0.5",
            "power law ruled out (p < 0.001): lognormal and exponential fit better",
        ),
        (
            "exponential 1.0",
            "power law ruled out (p < 0.001): lognormal and exponential fit better",
        ),
        ("pareto 2.0", "not ruled out"),
        ("pareto 2.0", "lognormal fits as well, exponential worse"),
    ],
)
def test_known_laws_are_called_by_name(case: str, words: str) -> None:
    assert words in verdict(judge_tail(CASES[case]))


@pytest.mark.parametrize(
    ("p", "lognormal", "exponential", "words"),
    [
        (
            0.34,
            -1.6,
            1.6,
            "power law not ruled out (p <= 0.34): lognormal and exponential fit as well",
        ),
        (
            0.101,
            -1.7,
            1.7,
            "power law not ruled out (p <= 0.10): lognormal fits better, exponential worse",
        ),
        (
            0.0999,
            0.0,
            1.7,
            "power law ruled out (p <= 0.100): lognormal fits no better, exponential worse",
        ),
        (
            0.0123,
            0.0,
            -1.0,
            "power law ruled out (p <= 0.012): lognormal and exponential fit no better",
        ),
        (
            0.0009,
            -2.0,
            -9.0,
            "power law ruled out (p < 0.001): lognormal and exponential fit better",
        ),
    ],
)
def test_every_judgement_has_its_sentence(
    p: float, lognormal: float, exponential: float, words: str
) -> None:
    found = GoodnessOfFit(
        n_tail=99, ks=0.1, ks_p=p, lognormal_ratio=lognormal, exponential_ratio=exponential
    )
    assert verdict(found) == words


def test_a_small_tail_is_not_judged() -> None:
    small, enough = judge_tail(pareto(49, 2.0, 0)), judge_tail(pareto(50, 2.0, 0))
    assert verdict(small) == "too few tail eigenvalues to tell (n = 49)"
    assert math.isnan(small.ks_p)
    assert math.isfinite(enough.ks_p)
    assert verdict(judge_tail(np.full(80, 3.0))) == "all tail eigenvalues are equal"
    assert judge_tail(np.empty(0)).n_tail == 0


@pytest.mark.parametrize(
    "tail", [[2.0, 1.0, 3.0], [-1.0, 2.0, 3.0], [0.0, 1.0, 2.0], [1.0, math.nan, 2.0]]
)
def test_what_is_no_tail_is_refused(tail: list[float]) -> None:
    with pytest.raises(
        SpecError, match="expected the positive eigenvalues of a tail in ascending order"
    ):
        judge_tail(np.array(tail))


@pytest.mark.parametrize("factor", [2.0**300, 2.0**-300, 3.7e-5])
def test_the_units_do_not_matter_and_the_input_is_left_alone(factor: float) -> None:
    tail = CASES["student windows"]
    before = tail.copy()
    one, other = judge_tail(tail), judge_tail(tail * factor)
    for name in ("ks", "ks_p", "lognormal_ratio", "exponential_ratio"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-8)
    assert np.array_equal(tail, before)


def test_far_clusters_and_many_decades_stay_finite() -> None:
    cluster = np.append(1.0, np.sort(np.random.default_rng(0).normal(1e6, 1, 300)))
    decades = np.logspace(0, 30, 400)
    for tail in (cluster, decades, np.append(1.0, np.full(99, 2.0)), np.append(np.ones(99), 2.0)):
        found = judge_tail(tail)
        assert all(
            map(math.isfinite, (found.ks_p, found.lognormal_ratio, found.exponential_ratio))
        ), found


def test_ratios_and_their_chances() -> None:
    gaps = np.array([1.0, 2.0, 6.0])
    assert normalised_ratio(gaps, np.zeros(3)) == pytest.approx(9 / math.sqrt(3 * np.var(gaps)))
    assert normalised_ratio(gaps, gaps) == 0
    assert two_sided(-1.959964) == pytest.approx(0.05, abs=1e-7)
    assert two_sided(0) == 1


def test_a_hundred_thousand_eigenvalues_take_milliseconds() -> None:
    tail = spectrum("lognormal", 100_000)
    before = time.process_time()
    judge_tail(tail)
    assert time.process_time() - before < 0.5
