"""Is a tail a power law? How well the fit holds, and whether a lognormal or an exponential tail fits better.

Clauset, Shalizi and Newman, "Power-law distributions in empirical data", SIAM Review 51 (2009),
sections 4 and 5, with two departures, both for speed and both on the cautious side. The p-value of
the fit takes xmin as given, although it was chosen to make the distance small; and all p-values
take the eigenvalues as independent, although those of one matrix repel each other and lie closer to
any smooth law than independent samples do. Either makes the p-values too
large: what is rejected stays rejected, what is not rejected is not thereby shown.

Everything is computed for y = ln(x / xmin) >= 0, whose law is exponential under the power law, a
normal law cut off at 0 under the lognormal: the answers do not depend on the units of x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc, erfcx, log_ndtr

from spectail.core.tails import fit_from
from spectail.errors import SpecError

Array: TypeAlias = NDArray[np.float64]

MIN_JUDGED = 50
"""Smaller tails are not judged (Clauset et al. 2009: below about 50 samples alpha itself is
off)."""
LEVEL = 0.1
"""At or below it a p-value decides, for the fit as for a comparison (Clauset et al. 2009, sections
4.1 and 5.1)."""

_DISTANCES = (
    0.0,
    0.350,
    0.406,
    0.470,
    0.511,
    0.593,
    0.706,
    0.845,
    0.994,
    1.093,
    1.183,
    1.292,
    1.370,
    1.533,
    1.738,
)
"""Quantiles of sqrt(n) * distance + 0.63 / sqrt(n), from 700,000 simulated tails of 1000; the same
to 0.01 from n = 50 up, and those of Stephens (1974) for an exponential of unknown scale as far as
those go (0.99, 1.094, 1.298)."""
_CHANCES = (
    1,
    0.999,
    0.99,
    0.95,
    0.9,
    0.75,
    0.5,
    0.25,
    0.1,
    0.05,
    0.025,
    0.01,
    0.005,
    0.001,
    0.0001,
)
"""Chance of each to be exceeded."""
_SHIFT = 0.63
_DECAY = 3.35
"""Farther out the chance falls as exp(-3.35 d^2): 1 / (2 v), v = 0.1492 the largest variance of the
limiting process t (1 - t) - ((1 - t) ln(1 - t))^2 (Durbin 1975)."""

_CUTS = (-1e6, 100.0)
"""Range of the standardised cut of the lognormal; beyond the upper end it is a power law to one
part in 10^4."""


@dataclass(frozen=True, kw_only=True)
class GoodnessOfFit:
    """How a power law fares on one tail; NaN where the tail is too small to judge."""

    n_tail: int
    ks: float = math.nan
    """Kolmogorov-Smirnov distance between the tail and its power law."""
    ks_p: float = math.nan
    """Chance of a distance at least this large under the power law with this xmin; the true chance
    is smaller."""
    lognormal_ratio: float = math.nan
    """Log-likelihood of the power law minus that of the lognormal, in standard errors: positive for
    the power law."""
    exponential_ratio: float = math.nan
    """The same against the exponential."""

    @property
    def lognormal_p(self) -> float:
        """Chance of a ratio at least this far from 0 where both laws are equally close to the truth."""
        return two_sided(self.lognormal_ratio)

    @property
    def exponential_p(self) -> float:
        """The same for the exponential."""
        return two_sided(self.exponential_ratio)


def judge_tail(tail: Array) -> GoodnessOfFit:
    """Test the power law on a tail and compare it with the lognormal and the exponential cut off at the same xmin.

    ``tail`` are the eigenvalues at or above xmin, ascending, the first one xmin itself. Raises
    SpecError where they are not positive or not ascending.

    >>> sample = np.sort(1 / np.random.default_rng(0).random(2000))
    >>> verdict(judge_tail(sample))
    'power law not ruled out (p <= 0.82): lognormal fits as well, exponential worse'
    """
    if tail.size and not (tail[0] > 0 and bool((tail[1:] >= tail[:-1]).all())):
        raise SpecError(
            f"expected the positive eigenvalues of a tail in ascending order, got {tail[:3]} ... {tail[-1]}"
        )
    if tail.size < MIN_JUDGED or tail[0] == tail[-1]:
        return GoodnessOfFit(n_tail=tail.size)
    fit = fit_from(tail, 0)
    logs = np.log(tail / tail[0])
    power = power_law_terms(logs)
    return GoodnessOfFit(
        n_tail=tail.size,
        ks=fit.ks,
        ks_p=ks_p_value(fit.ks, tail.size),
        lognormal_ratio=normalised_ratio(power, lognormal_terms(logs)),
        exponential_ratio=normalised_ratio(power, exponential_terms(logs)),
    )


def verdict(found: GoodnessOfFit) -> str:
    """The judgement in one short sentence; its p is an upper bound, as the module says.

    >>> verdict(GoodnessOfFit(n_tail=900, ks=0.05, ks_p=0.0004, lognormal_ratio=-3.1, exponential_ratio=0.4))
    'power law ruled out (p < 0.001): lognormal fits better, exponential no better'
    """
    if math.isnan(found.ks_p):
        few = found.n_tail < MIN_JUDGED
        return (
            f"too few tail eigenvalues to tell (n = {found.n_tail})"
            if few
            else "all tail eigenvalues are equal"
        )
    out = found.ks_p <= LEVEL
    chance = (
        "p < 0.001" if found.ks_p < 0.001 else f"p <= {found.ks_p:.{3 if found.ks_p < 0.1 else 2}f}"
    )
    lognormal, exponential = (
        _fares(ratio, out) for ratio in (found.lognormal_ratio, found.exponential_ratio)
    )
    both = f"lognormal and exponential fit {lognormal}"
    rivals = (
        both
        if lognormal == exponential
        else f"lognormal fits {lognormal}, exponential {exponential}"
    )
    return f"power law {'ruled out' if out else 'not ruled out'} ({chance}): {rivals}"


def _fares(ratio: float, out: bool) -> str:
    """How a rival fits beside the power law, which is ruled out or not."""
    if two_sided(ratio) <= LEVEL:
        return "better" if ratio < 0 else "worse"
    return "no better" if out else "as well"


def ks_p_value(distance: float, n: int) -> float:
    """Chance that the fitted power law lies at least ``distance`` from n independent samples of one (xmin given).

    ln(x / xmin) is exponential whatever alpha is, and alpha is fitted, so that sqrt(n) * distance
    has one law for all power laws (Lilliefors 1969; Durbin 1975). Its quantiles are simulated;
    ``distance`` as in ``core.tails``.
    """
    scaled = math.sqrt(n) * distance + _SHIFT / math.sqrt(n)
    nodes = np.square(_DISTANCES)
    if scaled <= _DISTANCES[-1]:
        return float(np.exp(np.interp(scaled**2, nodes, np.log(_CHANCES))))
    return _CHANCES[-1] * math.exp(-_DECAY * (scaled**2 - float(nodes[-1])))


def power_law_terms(logs: Array) -> Array:
    """Log density of each y = ln(x / xmin) under the power law of greatest likelihood."""
    slope = 1 / float(logs.mean())
    terms: Array = math.log(slope) - slope * logs
    return terms


def exponential_terms(logs: Array) -> Array:
    """Log density of each y = ln(x / xmin) where x - xmin is exponential, its rate of greatest likelihood."""
    excess = np.expm1(logs)
    mean = float(excess.mean())
    terms: Array = logs - math.log(mean) - excess / mean
    return terms


def lognormal_terms(logs: Array) -> Array:
    """Log density of each y = ln(x / xmin) where x is lognormal above xmin, by greatest likelihood.

    y is normal above 0; with the cut ``c`` in standard deviations above the mean, the likelihood is
    greatest where the first two moments agree, which fixes c through mean(y^2) / mean(y)^2. This
    ratio runs from 1 to 2 as c rises; at 2 the law is exponential and x a power law, and a sample
    beyond has no other lognormal that fits it better (del Castillo 1994): then the terms are those
    of the power law.
    """
    mean = float(logs.mean())
    ratio = float(np.square(logs).mean()) / mean**2
    if ratio >= _moment_ratio(_CUTS[1]):
        return power_law_terms(logs)
    cut = _cut_of(ratio)
    sd = mean / _mean_beyond(cut)
    terms: Array = (
        -0.5 * np.square(logs / sd + cut)
        - math.log(sd * math.sqrt(2 * math.pi))
        - float(log_ndtr(-cut))
    )
    return terms


def normalised_ratio(first: Array, second: Array) -> float:
    """Sum of the differences of two laws' log densities, in standard errors of that sum (Vuong 1989); 0 where equal."""
    gaps = first - second
    spread = float(gaps.std()) * math.sqrt(gaps.size)
    return float(gaps.sum()) / spread if spread > 0 else 0.0


def two_sided(deviate: float) -> float:
    """Chance that a standard normal deviate lies at least this far from 0."""
    return float(erfc(abs(deviate) / math.sqrt(2)))


def _mean_beyond(cut: float) -> float:
    """Mean of z - cut for a standard normal z above ``cut``."""
    return math.sqrt(2 / math.pi) / float(erfcx(cut / math.sqrt(2))) - cut


def _moment_ratio(cut: float) -> float:
    """Mean of the square of z - cut, over the square of its mean, for a standard normal z above ``cut``."""
    mean = _mean_beyond(cut)
    return (1 - cut * mean) / mean**2


def _cut_of(ratio: float) -> float:
    """The cut within _CUTS whose moment ratio this is, by halving: the ratio rises with the cut.

    Importing scipy.optimize for it would take longer than judging a model.
    """
    low, high = _CUTS
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if _moment_ratio(middle) < ratio else (low, middle)
    return (low + high) / 2
