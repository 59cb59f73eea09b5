"""The curves of one layer's spectrum as coordinates: histogram, what alpha measures, the null.

The null is the spectrum of a random matrix. The survival curve is the share of eigenvalues at or
above a value. What alpha measures depends on the cutoff. If the cutoff claims a power law, the fit
is drawn from xmin to the largest eigenvalue. If not, alpha is a statement on the eigenvalues from
xmin on as a whole: the mean of ln(x / xmin) over them is 1 / (alpha - 1). It is drawn as a line of
slope 1 - alpha on log axes that reaches so far beyond xmin, with the same line of the null beside
it. Densities are per decade, d(share of the eigenvalues) / d(log10 eigenvalue), so that
areas on a log axis are shares. ``report.js`` draws the same curves from the same few numbers; a
browser test compares the two.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.cutoffs.base import Cutoff
from spectail.core.null import marchenko_pastur_density
from spectail.results.records import LayerRecord, Spectrum

Array: TypeAlias = NDArray[np.float64]
FIT_POINTS = 41
"""Points of the line of a tail fit."""
HIDDEN_SHARE = 0.005
"""The axes first leave out this share of the smallest eigenvalues, which may lie decades below."""
_EMPTY: Array = np.array([], dtype=np.float64)
OTHERS = (
    *("part", "null", "null survival", "null slope survival"),
    *("fit", "fit survival", "xmin", "xmin survival"),
)
"""Names of the lines that a layer may lack; the histogram and the survival curve it always has."""


class Curve(NamedTuple):
    """Coordinates of one line."""

    x: Array
    y: Array


class NullShape(NamedTuple):
    """The Marchenko-Pastur law on a log axis: log10(eigenvalue / (n v)), density, survival.

    Its shape depends on the ratio of the window's sides only. The long side n and the variance v of
    the entries shift it along the axis.
    """

    log10: Array
    density: Array
    survival: Array


@lru_cache(maxsize=512)
def null_shape(ratio: float) -> NullShape:
    """Return the law for windows of short side / long side = ``ratio``.

    With x = 1 + ratio - 2 sqrt(ratio) cos(angle), evenly spaced angles are dense at both edges of
    the law, where it is steep.
    """
    angle = np.concatenate(
        [np.geomspace(1e-3, math.pi / 60, 20)[:-1], np.linspace(math.pi / 60, math.pi, 101)]
    )
    # At the upper edge itself the density is 0, which a log axis cannot show.
    angle[-1] -= 1e-9
    x = 1 + ratio - 2 * math.sqrt(ratio) * np.cos(angle)
    density = marchenko_pastur_density(x, ratio)
    slope = density * 2 * math.sqrt(ratio) * np.sin(angle)
    # Trapezoidal rule over the angle: dx = 2 sqrt(ratio) sin(angle) d(angle).
    below = np.concatenate([[0.0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(angle))])
    # Per decade: d(x) = x ln(10) d(log10 x).
    return NullShape(np.log10(x), density * x * math.log(10), np.clip(1 - below / below[-1], 0, 1))


def window_ratio(layer: LayerRecord) -> float | None:
    """Return short side / long side of a layer's windows; None if it has no windows."""
    sides = layer.window_rows, layer.window_cols
    return min(sides) / max(sides) if min(sides) > 0 else None


def null_shift(layer: LayerRecord) -> float | None:
    """Return log10 of (long window side x variance of the entries); None if it is unknown.

    The null of the layer lies at this place of the log axis: see ``NullShape``.
    """
    scale = max(layer.window_rows, layer.window_cols) * layer.weight_var
    return math.log10(scale) if math.isfinite(scale) and scale > 0 else None


def has_fit(layer: LayerRecord) -> bool:
    """Whether the layer has a tail fit that can be drawn."""
    return (
        math.isfinite(layer.alpha)
        and layer.alpha > 1
        and math.isfinite(layer.xmin)
        and layer.xmin > 0
    )


def spectrum_curves(layer: LayerRecord, spectrum: Spectrum, cutoff: Cutoff) -> dict[str, Curve]:
    """Return the lines of a layer's figure by their names; a line may be empty.

    The names are the ``meta`` of the traces that draw them.
    """
    low, high = spectrum.edges
    total = sum(spectrum.counts)
    edges = 10 ** np.linspace(low, high, len(spectrum.counts) + 1)
    width = (high - low) / max(1, len(spectrum.counts))
    density = (
        np.array(spectrum.counts) / (total * width)
        if total and width > 0
        else np.zeros(len(spectrum.counts))
    )
    # reshape also serves an empty list, which has no second dimension.
    ranks, values = np.array(spectrum.top, dtype=np.float64).reshape(-1, 2).T
    curves = {
        # A step line needs the last density twice, at both edges of its bin.
        "histogram": Curve(edges, np.append(density, density[-1:])),
        "survival": Curve(values, ranks / max(1, total)),
    }
    for name in OTHERS:
        curves[name] = Curve(_EMPTY, _EMPTY)
    ratio, shift = window_ratio(layer), null_shift(layer)
    if ratio is not None and shift is not None:
        shape = null_shape(ratio)
        x = 10 ** (shape.log10 + shift)
        # Below half an eigenvalue the curve would only stretch the log axis.
        shown = shape.survival >= 0.5 / max(1, total)
        curves["null"] = Curve(x, shape.density)
        curves["null survival"] = Curve(x[shown], shape.survival[shown])
        # Only a cutoff that fixes the share gives the null an xmin of its own to start from.
        share = cutoff.share
        if share is not None and math.isfinite(layer.alpha_null) and layer.alpha_null > 1:
            # The survival falls with x; np.interp wants rising values.
            start = 10 ** (np.interp(-share, -shape.survival, shape.log10) + shift)
            curves["null slope survival"] = _slope(float(start), share, layer.alpha_null)
    if has_fit(layer) and total:
        curves["part"] = _from(layer.xmin, curves["histogram"])
        if cutoff.claims_power_law:
            curves |= _fit_curves(layer, total, high)
        else:
            curves["fit survival"] = _slope(layer.xmin, layer.n_tail / total, layer.alpha)
        line = np.array([layer.xmin, layer.xmin])
        peak = max(float(density.max(initial=0)), float(curves["fit"].y[:1].max(initial=0)))
        curves["xmin"] = Curve(line, np.array([0.0, peak]))
        curves["xmin survival"] = Curve(line, np.array([0.5 / total, 1.0]))
    return curves


def _slope(start: float, share: float, alpha: float) -> Curve:
    """Return the line of slope 1 - alpha on log axes from (start, share).

    It ends where the logarithm has grown by its mean over the eigenvalues from ``start`` on, which
    is 1 / (alpha - 1) by the definition of alpha; the share has fallen by a factor of e there.
    """
    return Curve(
        np.array([start, start * math.exp(1 / (alpha - 1))]), np.array([share, share / math.e])
    )


def _from(xmin: float, histogram: Curve) -> Curve:
    """Return the part of a step line from xmin on."""
    x, y = histogram
    place = int(np.searchsorted(x, xmin, side="right"))
    height = y[max(0, place - 1) : place]
    return Curve(np.append([xmin], x[place:]), np.append(height, y[place:]))


def shown_range(spectrum: Spectrum, curves: dict[str, Curve]) -> tuple[float, float]:
    """Return log10 of the eigenvalues at the ends of the axes.

    They show xmin, the null, and all eigenvalues but the smallest ``HIDDEN_SHARE``.
    """
    low, high = spectrum.edges
    total, bins = sum(spectrum.counts), len(spectrum.counts)
    below = np.cumsum(spectrum.counts)
    if total:
        low += (high - low) * int(np.searchsorted(below, HIDDEN_SHARE * total, side="right")) / bins
    xmin, null = curves["xmin"].x, curves["null"].x
    low = min([low, *np.log10(xmin[:1]).tolist()])
    high = max([high, *np.log10(null[-1:]).tolist()])
    pad = max(0.05, 0.03 * (high - low))
    return low - pad, high + pad


def _fit_curves(layer: LayerRecord, total: int, high: float) -> dict[str, Curve]:
    """Return the lines of the power law from xmin to the largest eigenvalue.

    The law is scaled to the share of eigenvalues that lie in the tail.
    """
    # P(X >= x) = (x / xmin) ** (1 - alpha) for a power law of exponent alpha.
    share, slope = layer.n_tail / total, layer.alpha - 1
    x = np.geomspace(layer.xmin, max(layer.xmin, 10**high), FIT_POINTS)
    survival = share * (x / layer.xmin) ** -slope
    density = survival * slope * math.log(10)
    return {"fit": Curve(x, density), "fit survival": Curve(x, survival)}
