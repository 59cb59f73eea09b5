"""The curves of one layer's spectrum: histogram, tail fit, null and survival, as plain coordinates.

Densities are per decade: d(share of the eigenvalues) / d(log10 eigenvalue), so that areas on the
log axis are shares. ``report.js`` draws the same curves from the same few numbers; a browser test
holds the two together.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.laws import marchenko_pastur_density
from spectail.results.records import LayerRecord, Spectrum

Array: TypeAlias = NDArray[np.float64]
FIT_POINTS = 41
HIDDEN_SHARE = 0.005
"""Share of the smallest eigenvalues that the axes leave out at first: a few of them may lie decades
below the rest."""
_EMPTY: Array = np.array([], dtype=np.float64)


class Curve(NamedTuple):
    """Coordinates of one line."""

    x: Array
    y: Array


class NullShape(NamedTuple):
    """The Marchenko-Pastur law on a log axis: log10(eigenvalue / (n v)), density per decade, survival.

    Only the ratio of the window matters: long side n and entry variance v shift it along the axis.
    """

    log10: Array
    density: Array
    survival: Array


@lru_cache(maxsize=512)
def null_shape(ratio: float) -> NullShape:
    """The law for windows of short side / long side = ``ratio``, on points dense at both of its edges."""
    angle = np.concatenate(
        [np.geomspace(1e-3, math.pi / 60, 20)[:-1], np.linspace(math.pi / 60, math.pi, 101)]
    )
    angle[-1] -= 1e-9
    x = 1 + ratio - 2 * math.sqrt(ratio) * np.cos(angle)
    density = marchenko_pastur_density(x, ratio)
    slope = density * 2 * math.sqrt(ratio) * np.sin(angle)
    below = np.concatenate([[0.0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(angle))])
    return NullShape(np.log10(x), density * x * math.log(10), np.clip(1 - below / below[-1], 0, 1))


def window_ratio(layer: LayerRecord) -> float | None:
    """Short side / long side of a layer's windows; None where there are none."""
    sides = layer.window_rows, layer.window_cols
    return min(sides) / max(sides) if min(sides) > 0 else None


def null_shift(layer: LayerRecord) -> float | None:
    """log10 of (long window side x entry variance): where the layer's null lies; None where it is not known."""
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


def spectrum_curves(layer: LayerRecord, spectrum: Spectrum) -> dict[str, Curve]:
    """The lines of the layer's figure by the name that its trace carries as ``meta``; empty where there is none."""
    low, high = spectrum.edges
    total = sum(spectrum.counts)
    edges = 10 ** np.linspace(low, high, len(spectrum.counts) + 1)
    width = (high - low) / max(1, len(spectrum.counts))
    density = (
        np.array(spectrum.counts) / (total * width)
        if total and width > 0
        else np.zeros(len(spectrum.counts))
    )
    ranks, values = np.array(spectrum.top, dtype=np.float64).reshape(-1, 2).T
    curves = {
        "histogram": Curve(edges, np.append(density, density[-1:])),
        "survival": Curve(values, ranks / max(1, total)),
    }
    for name in ("null", "null survival", "fit", "fit survival", "xmin", "xmin survival"):
        curves[name] = Curve(_EMPTY, _EMPTY)
    ratio, shift = window_ratio(layer), null_shift(layer)
    if ratio is not None and shift is not None:
        shape = null_shape(ratio)
        x = 10 ** (shape.log10 + shift)
        shown = shape.survival >= 0.5 / max(1, total)
        curves["null"] = Curve(x, shape.density)
        curves["null survival"] = Curve(x[shown], shape.survival[shown])
    if has_fit(layer) and total:
        curves |= _fit_curves(layer, total, high, float(density.max(initial=0)))
    return curves


def shown_range(spectrum: Spectrum, curves: dict[str, Curve]) -> tuple[float, float]:
    """log10 of the eigenvalues between which the axes start: xmin and all but HIDDEN_SHARE of the smallest are seen."""
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


def _fit_curves(layer: LayerRecord, total: int, high: float, peak: float) -> dict[str, Curve]:
    """The power law from xmin to the largest eigenvalue, holding the tail's share of the mass, and xmin itself."""
    share, slope = layer.n_tail / total, layer.alpha - 1
    x = np.geomspace(layer.xmin, max(layer.xmin, 10**high), FIT_POINTS)
    survival = share * (x / layer.xmin) ** -slope
    density = survival * slope * math.log(10)
    line = np.array([layer.xmin, layer.xmin])
    return {
        "fit": Curve(x, density),
        "fit survival": Curve(x, survival),
        "xmin": Curve(line, np.array([0.0, max(peak, float(density[0]))])),
        "xmin survival": Curve(line, np.array([0.5 / total, 1.0])),
    }
