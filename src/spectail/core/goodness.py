"""Goodness of fit of power-law tails, and their comparison with lognormal and exponential tails.

Clauset, Shalizi and Newman, "Power-law distributions in empirical data", SIAM Review 51 (2009),
sections 4 and 5. Two departures save time, and both make the p-values too large. The p-value of the
fit takes xmin as given, although xmin was chosen to make the distance small. All p-values treat the
eigenvalues as independent, although eigenvalues of one matrix repel each other and follow any
smooth law more closely than independent samples do. So a rejection stands, but a power law that is
not rejected is not thereby confirmed.

Everything is computed for y = ln(x / xmin) >= 0, so the results do not depend on the units of x.
Under a power law y is exponential; under a lognormal y is normal, truncated at 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.tails import fit_from
from spectail.errors import SpecError

Array: TypeAlias = NDArray[np.float64]

MIN_JUDGED = 50
"""Smaller tails are not tested: below about 50 samples alpha itself is inaccurate (Clauset et al.
2009)."""
LEVEL = 0.1
"""Significance level of the fit's p-value and of each comparison (Clauset et al. 2009, sections 4.1
and 5.1)."""

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
"""Quantiles of sqrt(n) * distance + 0.63 / sqrt(n) if the power law is true. They come from 700,000
simulated tails of 1000 samples, which ``python -m experiments.goodness`` simulates again (one
minute). For tails of 50 samples they agree within 0.01 down to a probability of 0.005, and within
0.02 beyond. They also agree with the quantiles of Stephens (1974) for an exponential of unknown
scale: 0.99, 1.094 and 1.298 at 10, 5 and 1 %."""
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
"""Probability that each quantile is exceeded."""
_SHIFT = 0.63
"""Finite-size correction that makes the quantiles above nearly independent of n."""
_DECAY = 3.35
"""Beyond the last quantile the probability falls as exp(-3.35 d^2). The rate is 1 / (2 v), where v
= 0.1492 is the largest variance of the limiting process, t (1 - t) - ((1 - t) ln(1 - t))^2 (Durbin
1975)."""

_CUTS = (-1e6, 100.0)
"""Range of the lognormal's truncation point, in standard deviations from its mean. Beyond the upper
end the lognormal equals a power law to one part in 10^4."""


@dataclass(frozen=True, kw_only=True)
class GoodnessOfFit:
    """How well a power law describes one tail; NaN if the tail is too small to test."""

    n_tail: int
    ks: float = math.nan
    """Kolmogorov-Smirnov distance between the tail and its fitted power law."""
    ks_p: float = math.nan
    """Upper bound of the p-value: probability of a distance this large if a power law with this
    xmin were true."""
    lognormal_ratio: float = math.nan
    """Log-likelihood of the power law minus that of the lognormal, in standard errors. Positive
    values favour the power law."""
    exponential_ratio: float = math.nan
    """Log-likelihood of the power law minus that of the exponential, in standard errors."""

    @property
    def lognormal_p(self) -> float:
        """Two-sided p-value of the lognormal ratio if both laws were equally close."""
        return two_sided(self.lognormal_ratio)

    @property
    def exponential_p(self) -> float:
        """Two-sided p-value of the exponential ratio if both laws were equally close."""
        return two_sided(self.exponential_ratio)


def judge_tail(tail: Array) -> GoodnessOfFit:
    """Test the power law on a tail and compare it with a lognormal and an exponential tail.

    ``tail`` holds the eigenvalues at or above xmin in ascending order, so the first one is xmin.
    All three laws start at xmin. Raises SpecError if the values are not positive or not ascending.

    >>> sample = np.sort(1 / np.random.default_rng(0).random(2000))
    >>> verdict(judge_tail(sample))
    'power law not ruled out (p <= 0.82): lognormal fits as well, exponential worse'
    """
    if tail.size and not (tail[0] > 0 and bool((tail[1:] >= tail[:-1]).all())):
        raise SpecError(
            "expected the positive eigenvalues of a tail in ascending order, "
            f"got {tail[:3]} ... {tail[-1]}"
        )
    if tail.size < MIN_JUDGED or tail[0] == tail[-1]:
        return GoodnessOfFit(n_tail=tail.size)
    # The whole array is the tail, so the fit starts at index 0.
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
    """Summarize a goodness of fit in one short sentence; its p is an upper bound (see the module).

    >>> verdict(
    ...     GoodnessOfFit(
    ...         n_tail=900, ks=0.05, ks_p=0.0004, lognormal_ratio=-3.1, exponential_ratio=0.4
    ...     )
    ... )
    'power law ruled out (p < 0.001): lognormal fits better, exponential no better'
    """
    if math.isnan(found.ks_p):
        few = found.n_tail < MIN_JUDGED
        return (
            f"too few tail eigenvalues to tell (n = {found.n_tail})"
            if few
            else "all tail eigenvalues are equal"
        )
    # Small p-values have three decimals, so that 0.003 is not shown as 0.00.
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
    """Say how an alternative law compares with the power law, which is ruled out or not."""
    if two_sided(ratio) <= LEVEL:
        return "better" if ratio < 0 else "worse"
    return "no better" if out else "as well"


def ks_p_value(distance: float, n: int) -> float:
    """Return the probability that the power law, if true, lies at least ``distance`` from its fit.

    The fit is to n independent samples, with xmin given. ln(x / xmin) is exponential whatever alpha
    is, and alpha is fitted, so sqrt(n) * distance has the same distribution for every power law
    (Lilliefors 1969; Durbin 1975). Its quantiles are simulated. ``distance`` is defined in
    ``core.tails``.
    """
    scaled = math.sqrt(n) * distance + _SHIFT / math.sqrt(n)
    # ln(probability) is nearly linear in the squared distance, so it is interpolated there.
    nodes = np.square(_DISTANCES)
    if scaled <= _DISTANCES[-1]:
        return float(np.exp(np.interp(scaled**2, nodes, np.log(_CHANCES))))
    return _CHANCES[-1] * math.exp(-_DECAY * (scaled**2 - float(nodes[-1])))


def power_law_terms(logs: Array) -> Array:
    """Return the log density of each y = ln(x / xmin) under the maximum-likelihood power law."""
    # y is exponential with the rate alpha - 1 = 1 / mean(y).
    slope = 1 / float(logs.mean())
    terms: Array = math.log(slope) - slope * logs
    return terms


def exponential_terms(logs: Array) -> Array:
    """Return the log density of each y = ln(x / xmin) if x - xmin is exponential.

    The rate of the exponential is fitted by maximum likelihood.
    """
    # In units of xmin, x - xmin is exp(y) - 1; the extra y is the Jacobian of x -> y.
    excess = np.expm1(logs)
    mean = float(excess.mean())
    terms: Array = logs - math.log(mean) - excess / mean
    return terms


def lognormal_terms(logs: Array) -> Array:
    """Return the log density of each y = ln(x / xmin) if x is lognormal above xmin.

    The lognormal is fitted by maximum likelihood. Then y is a normal variable truncated at 0. Let
    ``c`` be the truncation point in standard deviations above the mean. The likelihood is largest
    where the first two moments agree, and mean(y^2) / mean(y)^2 determines c. This ratio rises with
    c from 1 to 2. At 2 the truncated normal becomes an exponential, which makes x a power law, and
    beyond 2 no other lognormal fits better (del Castillo 1994). In that case the result is that of
    the power law.
    """
    # Slow to import, and only a cutoff that claims a power law needs it.
    from scipy.special import log_ndtr

    mean = float(logs.mean())
    ratio = float(np.square(logs).mean()) / mean**2
    if ratio >= _moment_ratio(_CUTS[1]):
        return power_law_terms(logs)
    cut = _cut_of(ratio)
    sd = mean / _mean_beyond(cut)
    # log_ndtr(-cut) normalizes the truncated law and does not underflow for a large cut.
    terms: Array = (
        -0.5 * np.square(logs / sd + cut)
        - math.log(sd * math.sqrt(2 * math.pi))
        - float(log_ndtr(-cut))
    )
    return terms


def normalised_ratio(first: Array, second: Array) -> float:
    """Return the log-likelihood ratio of two laws in its standard errors (Vuong 1989).

    The inputs are log densities per sample. The result is 0 if the two are equal.
    """
    gaps = first - second
    spread = float(gaps.std()) * math.sqrt(gaps.size)
    return float(gaps.sum()) / spread if spread > 0 else 0.0


def two_sided(deviate: float) -> float:
    """Return the probability that a standard normal variable lies at least this far from 0."""
    return math.erfc(abs(deviate) / math.sqrt(2))


def _mean_beyond(cut: float) -> float:
    """Return the mean of z - cut for a standard normal z above ``cut``."""
    from scipy.special import erfcx  # slow to import

    # erfcx is the ratio of tail to density without underflow (the inverse Mills ratio).
    return math.sqrt(2 / math.pi) / float(erfcx(cut / math.sqrt(2))) - cut


def _moment_ratio(cut: float) -> float:
    """Return mean((z - cut)^2) / mean(z - cut)^2 for a standard normal z above ``cut``."""
    mean = _mean_beyond(cut)
    return (1 - cut * mean) / mean**2


def _cut_of(ratio: float) -> float:
    """Find the cut in _CUTS with this moment ratio by bisection; the ratio rises with the cut.

    Importing scipy.optimize for it would take longer than testing all layers of a model.
    """
    # 64 halvings exhaust double precision on this range.
    low, high = _CUTS
    for _ in range(64):
        middle = (low + high) / 2
        low, high = (middle, high) if _moment_ratio(middle) < ratio else (low, middle)
    return (low + high) / 2
