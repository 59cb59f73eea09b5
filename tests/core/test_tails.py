"""Fits of a tail: against the formula, the library powerlaw, and samples whose exponent is
known."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from spectail.core import tails
from spectail.core.cutoffs import KSMinimum, Median
from spectail.core.tails import fit_from
from tests.core.spectra_cases import KINDS, SIZES, distinct, spectrum
from tests.reference import plain_farms

powerlaw = pytest.importorskip("powerlaw")
WIDE = {"alpha": [1.0, 1e4]}
"""The library stops at an exponent of 3 unless told."""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_is_the_formula(kind: str, size: int) -> None:
    found = spectrum(kind, size)
    for start in sorted({0, found.size // 3, found.size // 2, found.size - 2}):
        if found[start] < found[-1]:
            assert fit_from(found, start) == pytest.approx(
                plain_farms.fit_at_or_above(found, float(found[start])), rel=1e-12, abs=1e-14
            )


def test_ties_of_xmin_belong_to_the_tail() -> None:
    found = np.array([1.0, 2.0, 2.0, 2.0, 4.0])
    assert fit_from(found, 3) == fit_from(found, 1)
    assert fit_from(found, 3).n_tail == 4
    assert fit_from(found, 3).alpha == pytest.approx(1 + 4 / math.log(2))


def test_a_tail_of_equal_values_has_no_exponent() -> None:
    fit = fit_from(np.full(5, 3.0), 2)
    assert fit.alpha == math.inf
    assert math.isnan(fit.ks)
    assert (fit.xmin, fit.n_tail) == (3.0, 5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [100, 400])
@pytest.mark.parametrize(
    "kind", ["pareto", "lognormal", "uniform", "exponential", "gaussian windows", "two clusters"]
)
def test_the_library_powerlaw_agrees(kind: str, size: int) -> None:
    found = spectrum(kind, size)
    searched = powerlaw.Fit(found, verbose=False, parameter_ranges=WIDE)
    ours = fit_from(found, KSMinimum().start(found))
    assert (ours.alpha, ours.xmin, ours.ks) == pytest.approx(
        (searched.power_law.alpha, searched.xmin, searched.power_law.D), rel=1e-9
    )
    ours = fit_from(found, Median().start(found))
    given = powerlaw.Fit(found, xmin=ours.xmin, verbose=False, parameter_ranges=WIDE)
    assert (ours.alpha, ours.ks) == pytest.approx(
        (given.power_law.alpha, given.power_law.D), rel=1e-9
    )


@pytest.mark.parametrize("exponent", [1.5, 2.0, 3.5, 8.0])
def test_samples_of_a_known_exponent_give_it_back(exponent: float) -> None:
    """z = (alpha - exponent) sqrt(n) / (exponent - 1) is a standard normal deviate,
    but for a bias of about 1 / n."""
    rng = np.random.default_rng(int(10 * exponent))
    deviates = []
    for _ in range(200):
        sample = np.sort(7.3 * (1 - rng.random(2000)) ** (-1 / (exponent - 1)))
        fit = fit_from(sample, 0)
        deviates.append((fit.alpha - exponent) * math.sqrt(fit.n_tail) / (exponent - 1))
    assert abs(np.mean(deviates)) < 0.3
    assert np.max(np.abs(deviates)) < 3.5
    assert 0.8 < np.std(deviates) < 1.2


@pytest.mark.parametrize("exponent", [2.0, 3.0])
def test_ks_finds_where_a_tail_starts(exponent: float) -> None:
    rng = np.random.default_rng(0)
    tail = 10 * (1 - rng.random(3000)) ** (-1 / (exponent - 1))
    found = np.sort(np.concatenate([rng.uniform(1, 10, 3000), tail]))
    fit = fit_from(found, KSMinimum().start(found))
    assert fit.alpha == pytest.approx(exponent, rel=0.05)
    assert 9 < fit.xmin < 14


@pytest.mark.parametrize("kind", [kind for kind in KINDS if distinct(kind)])
def test_scaling_by_a_power_of_two_keeps_every_bit(kind: str) -> None:
    found = spectrum(kind, 641)
    for cutoff in (Median(), KSMinimum()):
        before, after = (fit_from(x, cutoff.start(x)) for x in (found, found * 2.0**40))
        assert (after.alpha, after.ks, after.n_tail) == (before.alpha, before.ks, before.n_tail)
        assert after.xmin == before.xmin * 2.0**40


@pytest.mark.parametrize("kind", ["lognormal", "gaussian windows", "exponential", "two clusters"])
def test_a_hundred_thousand_eigenvalues_are_fitted_in_seconds(kind: str) -> None:
    """Design: well under a second. The bound here is loose, for a busy machine;
    the plain scan takes minutes."""
    found = spectrum(kind, 100_000)
    before = time.process_time()
    fit_from(found, KSMinimum().start(found))
    assert time.process_time() - before < 5


def test_ks_search_on_a_power_law_throughout_computes_few_distances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eigenvalues = np.sort(np.random.default_rng(0).pareto(1.5, 100_000) + 1)
    full = tails._gaps
    computed: list[int] = []

    def gaps(logs: Any, alpha: float) -> Any:
        computed.append(logs.size)
        return full(logs, alpha)

    monkeypatch.setattr(tails, "_gaps", gaps)
    tails.best_ks_start(eigenvalues, 0, eigenvalues.size - 1)
    assert 1 <= len(computed) < 50
