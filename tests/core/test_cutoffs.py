"""Every cutoff against the plain loop, on spectra of many kinds; and what their texts say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from spectail.core import cutoffs
from spectail.core.cutoffs import Fixed, HistogramPeak, KSMinimum, Median, TopFraction, parse_cutoff
from spectail.core.tails import best_ks_start, fit_from
from spectail.errors import SpecError
from tests.core.spectra_cases import KINDS, SIZES, distinct, spectrum
from tests.reference import plain_farms

CUTOFFS = {
    "median": Median(),
    "ks": KSMinimum(),
    "peak": HistogramPeak(),
    "top:0.1": TopFraction(0.1),
    "top:1.0": TopFraction(1.0),
    "fixed:1.5": Fixed(1.5),
}
SEEDS = {2: 4, 3: 4, 5: 4, 17: 3, 100: 2, 641: 1, 3000: 1}
SPECTRA = [(kind, size, seed) for kind in KINDS for size in SIZES for seed in range(SEEDS[size])]


def test_every_cutoff_is_in_the_table() -> None:
    assert {type(cutoff) for cutoff in CUTOFFS.values()} == set(cutoffs.CUTOFFS)
    assert len(SPECTRA) > 200


@pytest.mark.parametrize("text", CUTOFFS)
def test_a_cutoff_is_what_its_text_says(text: str) -> None:
    assert parse_cutoff(text) == CUTOFFS[text]
    assert str(parse_cutoff(str(CUTOFFS[text]))) == str(CUTOFFS[text])
    assert parse_cutoff(str(CUTOFFS[text])) == CUTOFFS[text]


@pytest.mark.parametrize("fraction", [1 / 3, 0.123456789, 1e-7])
def test_a_fraction_survives_its_text(fraction: float) -> None:
    assert parse_cutoff(str(TopFraction(fraction))) == TopFraction(fraction)


BAD_CUTOFFS = [
    "",
    "mean",
    "ks:1",
    "median:2",
    "peak:50",
    "top",
    "top:",
    "top:x",
    "top:nan",
    "fixed:inf",
    "fixed",
]


@pytest.mark.parametrize("text", BAD_CUTOFFS)
def test_a_bad_cutoff_is_named(text: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_cutoff(text)
    assert str(error.value) == f"cutoff must be median, ks, peak, top:F or fixed:X, not {text!r}"


OUT_OF_RANGE = [
    ("top:0", "top:F needs a fraction above 0 and at most 1, not 0.0"),
    ("top:1.5", "top:F needs a fraction above 0 and at most 1, not 1.5"),
    ("top:-0.1", "top:F needs a fraction above 0 and at most 1, not -0.1"),
    ("fixed:0", "fixed:X needs a positive finite xmin, not 0.0"),
    ("fixed:-2", "fixed:X needs a positive finite xmin, not -2.0"),
]


@pytest.mark.parametrize(("text", "message"), OUT_OF_RANGE)
def test_a_number_out_of_range_is_named(text: str, message: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_cutoff(text)
    assert str(error.value) == message


@pytest.mark.parametrize(("kind", "size", "seed"), SPECTRA)
def test_the_best_ks_start_is_that_of_the_plain_scan(kind: str, size: int, seed: int) -> None:
    found = spectrum(kind, size, seed)
    known = plain_farms.fit_best_ks(found, np.unique(found[:-1]).tolist())
    ours = fit_from(found, best_ks_start(found, 0, found.size - 1))
    if known.n_tail:
        assert ours.ks == pytest.approx(known.ks, rel=1e-9, abs=1e-12)
        assert ours.xmin == known.xmin
        assert ours.n_tail == known.n_tail
        assert ours.alpha == pytest.approx(known.alpha, rel=1e-9)
    else:
        assert not math.isfinite(ours.alpha), "no candidate has a tail that a power law could fit"


@pytest.mark.parametrize("bounds", [(0, 1), (10, 11), (30, 60), (0, 99), (95, 99)])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if distinct(kind)])
def test_only_candidates_between_the_bounds_are_tried(kind: str, bounds: tuple[int, int]) -> None:
    found = spectrum(kind, 100)
    first, stop = bounds[0] * found.size // 100, max(bounds[0] + 1, bounds[1] * found.size // 100)
    known = plain_farms.fit_best_ks(found, found[first:stop].tolist())
    assert found[best_ks_start(found, first, stop)] == known.xmin


def test_bounds_that_hold_no_candidate_give_the_first() -> None:
    found = spectrum("pareto", 50)
    assert best_ks_start(found, 20, 20) == 20
    assert best_ks_start(found, 50, 50) == 49
    assert best_ks_start(np.ones(9), 0, 8) == 0


@pytest.mark.parametrize("cutoff", [text for text in CUTOFFS if not text.startswith("fixed")])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if distinct(kind)])
def test_a_cutoff_gives_the_plain_fit(kind: str, cutoff: str) -> None:
    for size in (2, 17, 100, 641):
        found = spectrum(kind, size)
        known = plain_farms.fit(found, cutoff)
        ours = fit_from(found, CUTOFFS[cutoff].start(found))
        if known.n_tail > 1:
            assert ours == pytest.approx(known, rel=1e-9)


def test_the_legacy_peak_compares_a_logarithm_with_eigenvalues() -> None:
    """A power law from 3 up, a clump at 100, a foot below 2: the bound of
    log10(95) lets the law start at 3."""
    law = 3 * np.linspace(0.003, 1, 300) ** -0.6
    found = np.sort(np.concatenate([np.linspace(0.1, 1.9, 150), law, np.linspace(100, 101, 40)]))
    assert 90 < plain_farms.histogram_peak(found) < 101
    legacy = fit_from(found, HistogramPeak(legacy_lower_bound=True).start(found))
    assert 2 < legacy.xmin < 4
    assert legacy == pytest.approx(plain_farms.fit(found, "peak", legacy=True), rel=1e-9)
    assert fit_from(found, HistogramPeak().start(found)).xmin > 85


def test_peak_takes_its_candidates_from_the_peak_up() -> None:
    """A spectrum with a heavy foot: the lower bound of 0.95 peak keeps xmin off
    it, the legacy one lets it in."""
    found = np.sort(
        np.concatenate(
            [
                np.geomspace(1e-4, 0.9, 400),
                np.linspace(1.0, 1.05, 200),
                1 / np.linspace(0.02, 1, 90),
            ]
        )
    )
    peak = plain_farms.histogram_peak(found)
    ours, legacy = (
        fit_from(found, HistogramPeak(legacy_lower_bound=flag).start(found))
        for flag in (False, True)
    )
    assert 0.95 * peak <= ours.xmin <= 1.5 * peak
    assert legacy.xmin == plain_farms.fit(found, "peak", legacy=True).xmin


def test_fixed_counts_what_is_at_or_above() -> None:
    found = np.array([0.5, 1.0, 1.5, 1.5, 2.0])
    assert Fixed(1.5).start(found) == 2
    assert Fixed(2.5).start(found) == 5
    assert fit_from(found, Fixed(1.5).start(found)).n_tail == 3


@pytest.mark.parametrize(
    ("size", "fraction", "tail"), [(10, 0.25, 3), (10, 0.01, 1), (7, 1, 7), (1000, 0.1, 100)]
)
def test_top_rounds_to_the_nearest_count(size: int, fraction: float, tail: int) -> None:
    assert size - TopFraction(fraction).start(np.arange(1.0, size + 1)) == tail


@pytest.mark.parametrize("size", [2, 3, 10, 11])
def test_median_starts_at_the_middle(size: int) -> None:
    assert Median().start(np.arange(1.0, size + 1)) == size // 2
