"""The figure of one layer's spectrum: its histogram and its survival curve, and what alpha is."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from spectail.basics.texts import with_error
from spectail.errors import SpectailError
from spectail.report.curves import Curve, shown_range, spectrum_curves
from spectail.report.plots import shorten
from spectail.report.theme import ACCENT, FIT, NULL, axis, figure, safe
from spectail.results.records import LayerRecord, Results, Spectrum

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from spectail.core.cutoffs.base import Cutoff

_SECOND = {"xaxis": "x2", "yaxis": "y2", "showlegend": False}
"""Settings of traces in the second panel; the legend lists those of the first."""
_NULL_LINE = {"color": NULL, "width": 2, "dash": "dot"}
_FIT_LINE = {"color": FIT, "width": 2.5}
_XMIN_LINE = {"color": FIT, "width": 1, "dash": "dash"}

LOOKS: dict[str, dict[str, object]] = {
    "part": {
        "name": "part",
        "line": {"color": FIT, "width": 0, "shape": "hv"},
        "fill": "tozeroy",
        "fillcolor": "rgba(208, 73, 47, 0.30)",
        "hoverinfo": "skip",
    },
    "histogram": {
        "name": "eigenvalues",
        "line": {"color": ACCENT, "width": 1, "shape": "hv"},
        "fill": "tozeroy",
        "fillcolor": "rgba(47, 111, 196, 0.22)",
        "hovertemplate": "%{x:.3g}: %{y:.3f} per decade<extra></extra>",
    },
    "null": {"name": "random matrix of the same variance", "line": _NULL_LINE},
    "fit": {"name": "fit", "line": _FIT_LINE},
    "xmin": {"name": "xmin", "line": _XMIN_LINE},
    "survival": {
        "name": "eigenvalues",
        "mode": "markers",
        "marker": {"color": ACCENT, "size": 5},
        **_SECOND,
        "hovertemplate": "%{y:.3g} of the eigenvalues ≥ %{x:.3g}<extra></extra>",
    },
    "null survival": {"name": "random matrix", "line": _NULL_LINE, **_SECOND},
    "null slope survival": {
        "name": "slope of the random matrix",
        "line": {**_NULL_LINE, "width": 4},
        **_SECOND,
    },
    "fit survival": {"name": "fit", "line": {**_FIT_LINE, "width": 3.5}, **_SECOND},
    "xmin survival": {"name": "xmin", "line": _XMIN_LINE, **_SECOND},
}
"""The traces, in drawing order, by the names of ``curves.spectrum_curves``."""


def find_layer(results: Results, name: str) -> tuple[LayerRecord, Spectrum]:
    """Return the layer of this name and its spectrum.

    Raises:
        SpectailError: no such layer, with the most similar names; or a layer without a spectrum.

    """
    by_name = {layer.name: layer for layer in results.layers}
    if name not in by_name:
        # Nearly all wrong names are typing errors or lack a prefix.
        near = difflib.get_close_matches(name, by_name, 3, 0.4)
        hint = (
            f"; did you mean {' or '.join(near)}?"
            if near
            else f"; the run has {len(by_name)} layers"
        )
        raise SpectailError(f"no layer is called {name!r}{hint}")
    layer = by_name[name]
    if layer.spectrum is None:
        reason = f": {layer.reason}" if layer.reason else ""
        raise SpectailError(
            f"layer {name!r} has no spectrum to draw (status {layer.status}{reason})"
        )
    return layer, layer.spectrum


def layer_spectrum(results: Results, name: str) -> go.Figure:
    """Draw the spectrum of one layer: density per decade, and the survival curve on log axes.

    Both panels show what alpha measures (see ``curves``), xmin and the null.
    """
    layer, spectrum = find_layer(results, name)
    cutoff = results.run.spec.cutoff
    curves = spectrum_curves(layer, spectrum, cutoff)
    fig = spectrum_figure(curves, cutoff)
    # A few eigenvalues may lie decades below the rest; without limits they squeeze the picture.
    fig.update_xaxes(range=shown_range(spectrum, curves))
    title = f"{safe(shorten(name, 80))}, alpha {with_error(layer.alpha, layer.alpha_se)}"
    fig.update_layout(title={"text": title, "font": {"size": 15}}, margin={"t": 88})
    return fig


def part_name(cutoff: Cutoff) -> str:
    """Name the eigenvalues that alpha is about, as the cutoff chooses them."""
    if cutoff.share is None:
        return "from xmin on"
    return "upper half" if cutoff.share == 0.5 else f"largest {100 * cutoff.share:g} %"


def fit_name(cutoff: Cutoff) -> str:
    """Name the line that shows alpha: a fit only where the cutoff claims a power law."""
    return "power-law fit" if cutoff.claims_power_law else "slope 1 \u2212 alpha"


def spectrum_figure(curves: dict[str, Curve], cutoff: Cutoff) -> go.Figure:
    """Draw the two panels with the given curves.

    The HTML page holds this figure without curves; its script fills in the chosen layer.
    """
    x = {"type": "log", "exponentformat": "power", "nticks": 7, "tickangle": 0}
    fig = figure(
        xaxis=axis("eigenvalue", domain=[0, 0.46], showgrid=False, **x),
        yaxis=axis("density per decade", rangemode="tozero"),
        xaxis2=axis("eigenvalue", domain=[0.56, 1], showgrid=False, **x),
        yaxis2=axis(
            "share of eigenvalues at or above",
            type="log",
            anchor="x2",
            exponentformat="power",
            dtick=1,
        ),
        hovermode="closest",
    )
    names = {"part": part_name(cutoff), "fit": fit_name(cutoff)}
    for meta, look in LOOKS.items():
        curve = curves.get(meta)
        xs, ys = (curve.x, curve.y) if curve else ([], [])
        look = {**look, "name": names.get(meta, look["name"])}
        # One button of the legend shows or hides a curve in both panels.
        group = meta.split()[0]
        fig.add_scatter(
            **{"x": xs, "y": ys, "mode": "lines", "meta": meta, "legendgroup": group, **look}
        )
    return fig
