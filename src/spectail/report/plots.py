"""The figures of a run, as plotly figures for notebooks and for the HTML page.

Points carry the row number of their layer as ``customdata``, which tells the page's script what was
clicked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from spectail.basics.texts import plural, with_error
from spectail.report.depth import Depth, depth_of
from spectail.report.theme import (
    GRID,
    NULL,
    NULL_FILL,
    TIMES,
    axis,
    figure,
    kind_styles,
    note,
    safe,
)
from spectail.results.records import LayerRecord, Results

if TYPE_CHECKING:
    import plotly.graph_objects as go

Numbered = tuple[int, LayerRecord]
"""A row number and its layer."""
ALPHA = "alpha (lower = heavier tail)"


def measured(results: Results) -> list[Numbered]:
    """Return (row number, layer) of every layer that is ok and has a finite alpha."""
    return [
        (i, x) for i, x in enumerate(results.layers) if x.status == "ok" and math.isfinite(x.alpha)
    ]


def alpha_by_depth(results: Results) -> go.Figure:
    """Draw alpha along the model: one line per kind of layer, and the null as a band of 2 sd.

    Error bars are one ``alpha_se``. If a block holds several layers of a kind, the line joins their
    means. Layers that are not comparable (their window is not the run's) are open marks without a
    line; they do not count for the null band or the scale, and lie at the edge if they are beyond.
    """
    layers = measured(results)
    depth = depth_of([(layer.name, layer.block) for _, layer in layers])
    places, labels = depth.ticks()
    fig = figure(
        xaxis=axis(
            depth.title, showgrid=False, tickvals=places, ticktext=[safe(x) for x in labels]
        ),
        yaxis=axis(ALPHA),
    )
    if not layers:
        return note(fig, "no layer was measured")
    _add_null(fig, layers, depth)
    for place, label in depth.names():
        # Upright, for they are long and stand close together.
        fig.add_annotation(
            x=place, y=0, yref="paper", yanchor="bottom", text=safe(label), textangle=-90,
            showarrow=False, opacity=0.75, font={"size": 11},
        )  # fmt: skip
    scale = _scale([layer for _, layer in layers])
    if scale:
        fig.update_yaxes(range=scale)
    styles = kind_styles([layer.kind for _, layer in layers])
    for kind in styles:
        mine = [
            (i, layer, x)
            for (i, layer), x in zip(layers, depth.places, strict=True)
            if layer.kind == kind
        ]
        # Marks that cannot be compared must not look as if they could: no line joins them.
        solid = [entry for entry in mine if entry[1].comparable]
        opened = [entry for entry in mine if not entry[1].comparable]
        if solid:
            _add_kind(fig, kind, solid, styles[kind])
        if opened:
            _add_points(fig, kind, opened, styles[kind], legend=not solid, opened=True, scale=scale)
    return fig


def _scale(layers: Sequence[LayerRecord]) -> tuple[float, float] | None:
    """Return the range of the comparable alphas, their errors and nulls; None if all count."""
    solid = [layer for layer in layers if layer.comparable]
    if not solid or len(solid) == len(layers):
        return None
    errors = [x.alpha_se if math.isfinite(x.alpha_se) else 0.0 for x in solid]
    ends = [x.alpha + side * e for x, e in zip(solid, errors, strict=True) for side in (-1, 1)]
    ends += [x.alpha_null for x in solid if math.isfinite(x.alpha_null)]
    low, high = min(ends), max(ends)
    pad = 0.06 * (high - low) or 0.1
    return low - pad, high + pad


def hover(layer: LayerRecord) -> str:
    """Write the text that a point shows when the pointer is over it; names in it are escaped."""
    alpha = with_error(layer.alpha, layer.alpha_se)
    bare = "" if math.isfinite(layer.alpha_se) else " (no error bar)"
    null = f"null {layer.alpha_null:.3f}" if math.isfinite(layer.alpha_null) else "no null"
    lines = [
        f"<b>{safe(shorten(layer.name))}</b>",
        f"alpha {alpha}{bare} · {null}",
        f"{layer.rows} {TIMES} {layer.cols} · {windows_text(layer)}",
    ]
    if not layer.comparable:
        lines.append("<i>not comparable with other layers: its window is not that of the run</i>")
    if layer.reason:
        lines.append(f"<i>{safe(shorten(layer.reason, 90))}</i>")
    return "<br>".join(lines)


def windows_text(layer: LayerRecord) -> str:
    """Say how a layer was cut: ``9 windows of 64 x 64``."""
    windows = plural(layer.n_windows, "window")
    return f"{windows} of {layer.window_rows} {TIMES} {layer.window_cols}"


def shorten(text: str, most: int = 64) -> str:
    """Shorten a text to ``most`` characters by leaving out its middle."""
    # Beginnings name the block and ends the layer: the middle says least.
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _add_null(fig: go.Figure, layers: Sequence[Numbered], depth: Depth) -> None:
    """Draw a band from the lowest to the highest null (2 sd) at each place, and a dotted middle."""
    known = [
        (
            x,
            layer.alpha_null,
            2 * layer.alpha_null_sd if math.isfinite(layer.alpha_null_sd) else 0.0,
        )
        for (_, layer), x in zip(layers, depth.places, strict=True)
        # Other windows have other nulls: they count only if there is no comparable layer at all.
        if math.isfinite(layer.alpha_null)
        and (layer.comparable or not any(y.comparable for _, y in layers))
    ]
    if not known:
        return
    xs = sorted({x for x, _, _ in known})
    low = [min(null - half for x, null, half in known if x == place) for place in xs]
    high = [max(null + half for x, null, half in known if x == place) for place in xs]
    mid = [float(np.mean([null for x, null, _ in known if x == place])) for place in xs]
    # The band reaches half a place beyond the first and the last layer.
    ends = [xs[0] - 0.5, *map(float, xs), xs[-1] + 0.5]
    low, high, mid = _widen(low), _widen(high), _widen(mid)
    shared = {"mode": "lines", "hoverinfo": "skip", "legendgroup": "null"}
    # Without a known spread, the null is a line only.
    if any(half > 0 for _, _, half in known):
        fig.add_scatter(x=ends, y=low, line={"width": 0}, showlegend=False, **shared)
        fig.add_scatter(
            x=ends,
            y=high,
            line={"width": 0},
            fill="tonexty",
            fillcolor=NULL_FILL,
            showlegend=False,
            **shared,
        )
    fig.add_scatter(
        x=ends,
        y=mid,
        name="random matrix",
        line={"color": NULL, "width": 1.5, "dash": "dot"},
        **shared,
    )


def _widen(values: list[float]) -> list[float]:
    """Repeat the first and the last value, for the half places at both ends of the band."""
    return [values[0], *values, values[-1]]


def _add_kind(
    fig: go.Figure, kind: str, mine: list[tuple[int, LayerRecord, int]], style: tuple[str, str]
) -> None:
    """Draw the points of one kind and a line through them, or through means if places repeat."""
    xs = sorted({x for _, _, x in mine})
    # One layer per place: the line goes through the points themselves.
    if len(xs) == len(mine):
        _add_points(fig, kind, sorted(mine, key=lambda entry: entry[2]), style, line=len(mine) > 1)
        return
    means = [float(np.mean([layer.alpha for _, layer, x in mine if x == place])) for place in xs]
    if len(xs) > 1:
        fig.add_scatter(
            x=xs, y=means, mode="lines", legendgroup=kind, showlegend=False, hoverinfo="skip",
            line={"color": style[0], "width": 2},
        )  # fmt: skip
    _add_points(fig, kind, mine, style)


def _add_points(
    fig: go.Figure, kind: str, mine: list[tuple[int, LayerRecord, int]], style: tuple[str, str],
    *, line: bool = False, legend: bool = True, opened: bool = False,
    scale: tuple[float, float] | None = None,
) -> None:  # fmt: skip
    """Draw points with error bars; ``mine`` has (row number, layer, place) of each.

    Points beyond ``scale`` lie at its edge.
    """
    colour, symbol = style
    low, high = scale or (-math.inf, math.inf)
    errors = [layer.alpha_se if math.isfinite(layer.alpha_se) else None for _, layer, _ in mine]
    fig.add_scatter(
        x=[x for _, _, x in mine],
        y=[min(max(layer.alpha, low), high) for _, layer, _ in mine],
        customdata=[i for i, _, _ in mine],
        hovertext=[hover(layer) for _, layer, _ in mine],
        hoverinfo="text",
        mode="lines+markers" if line else "markers",
        name=safe(kind),
        legendgroup=kind,
        showlegend=legend,
        meta="not comparable" if opened else "layers",
        line={"color": colour, "width": 2},
        marker={
            "color": colour,
            "symbol": f"{symbol}-open" if opened else symbol,
            # Large models have hundreds of points side by side.
            "size": 8 if len(mine) < 60 else 6,
        },
        error_y={"type": "data", "array": errors, "thickness": 1.2, "width": 0, "color": colour},
    )


def change_by_depth(results: Results) -> go.Figure:
    """Draw the relative change of the weights along the model: the points of each kind of layer."""
    # A log axis has no place for the layers that did not change at all.
    layers = [(i, x) for i, x in enumerate(results.layers) if x.relative_change > 0]
    depth = depth_of([(layer.name, layer.block) for _, layer in layers])
    places, labels = depth.ticks()
    fig = figure(
        xaxis=axis(
            depth.title, showgrid=False, tickvals=places, ticktext=[safe(x) for x in labels]
        ),
        yaxis=axis("relative change", type="log", exponentformat="power"),
    )
    if not layers:
        return note(fig, "no layer has changed")
    for kind, (colour, symbol) in kind_styles([layer.kind for _, layer in layers]).items():
        mine = [
            (i, layer, x)
            for (i, layer), x in zip(layers, depth.places, strict=True)
            if layer.kind == kind
        ]
        once = len({x for _, _, x in mine}) == len(mine) > 1
        fig.add_scatter(
            x=[x for _, _, x in mine],
            y=[layer.relative_change for _, layer, _ in mine],
            customdata=[i for i, _, _ in mine],
            hovertext=[
                f"{hover(layer)}<br>relative change {layer.relative_change:.3g}"
                for _, layer, _ in mine
            ],
            hoverinfo="text",
            mode="lines+markers" if once else "markers",
            name=safe(kind),
            legendgroup=kind,
            meta="layers",
            line={"color": colour, "width": 2},
            marker={"color": colour, "symbol": symbol, "size": 7},
        )
    return fig


def farms_against_full(results: Results) -> go.Figure:
    """Draw alpha over windows against alpha of the full spectrum, for layers that have both."""
    layers = [(i, x) for i, x in measured(results) if math.isfinite(x.alpha_full)]
    fig = figure(xaxis=axis("alpha of the full spectrum"), yaxis=axis("alpha over windows (FARMS)"))
    if not layers:
        return note(fig, "no full-spectrum alphas: run with --full-spectrum")
    ends = [x for _, layer in layers for x in (layer.alpha, layer.alpha_full)]
    fig.add_scatter(
        x=[min(ends), max(ends)],
        y=[min(ends), max(ends)],
        mode="lines",
        name="equal",
        hoverinfo="skip",
        line={"color": NULL, "width": 1.5, "dash": "dot"},
    )
    styles = kind_styles([layer.kind for _, layer in layers])
    for kind in styles:
        mine = [(i, layer) for i, layer in layers if layer.kind == kind]
        colour, symbol = styles[kind]
        fig.add_scatter(
            x=[layer.alpha_full for _, layer in mine],
            y=[layer.alpha for _, layer in mine],
            customdata=[i for i, _ in mine],
            hovertext=[
                f"{hover(layer)}<br>full spectrum {layer.alpha_full:.3f}" for _, layer in mine
            ],
            hoverinfo="text",
            mode="markers",
            name=safe(kind),
            meta="layers",
            legendgroup=kind,
            marker={
                "color": colour,
                "symbol": [symbol if layer.comparable else f"{symbol}-open" for _, layer in mine],
                "size": 8,
                "line": {"width": 1, "color": colour if len(mine) > 200 else GRID},
            },
        )
    return fig
