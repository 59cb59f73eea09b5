"""The figures of a run, as plotly figures that work in a notebook and in the HTML page alike.

Points carry the row number of their layer as ``customdata``, which is how the page knows what was
clicked.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from spectail.errors import SpectailError
from spectail.report.curves import Curve, shown_range, spectrum_curves
from spectail.report.depth import Depth, depth_of
from spectail.report.theme import (
    ACCENT,
    FIT,
    GRID,
    HEAT_SCALE,
    NULL,
    NULL_FILL,
    TIMES,
    axis,
    figure,
    kind_styles,
    note,
    safe,
)
from spectail.results.records import LayerRecord, Results, Spectrum

if TYPE_CHECKING:
    import plotly.graph_objects as go

Numbered = tuple[int, LayerRecord]
ALPHA = "alpha (lower = heavier tail)"


def measured(results: Results) -> list[Numbered]:
    """(row number, layer) of every layer that is ok and has a finite alpha."""
    return [
        (i, x) for i, x in enumerate(results.layers) if x.status == "ok" and math.isfinite(x.alpha)
    ]


def alpha_by_depth(results: Results) -> go.Figure:
    """Alpha along the model: one line per kind of layer, error bars of one alpha_se, the null as a band of 2 sd.

    Where a block holds several layers of a kind, the line joins their means. Layers that are not
    comparable (their window is not the run's) are open, in no line, and do not set the null band.
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
    styles = kind_styles([layer.kind for _, layer in layers])
    for kind in styles:
        mine = [
            (i, layer, x)
            for (i, layer), x in zip(layers, depth.places, strict=True)
            if layer.kind == kind
        ]
        solid = [entry for entry in mine if entry[1].comparable]
        opened = [entry for entry in mine if not entry[1].comparable]
        if solid:
            _add_kind(fig, kind, solid, styles[kind])
        if opened:
            _add_points(fig, kind, opened, styles[kind], legend=not solid, opened=True)
    return fig


def hover(layer: LayerRecord) -> str:
    """The text of a point, safe to show: name, alpha with its error, null, shape and windows, what to keep in mind."""
    error = f" ± {layer.alpha_se:.3f}" if math.isfinite(layer.alpha_se) else " (no error bar)"
    null = f"null {layer.alpha_null:.3f}" if math.isfinite(layer.alpha_null) else "no null"
    lines = [
        f"<b>{safe(shorten(layer.name))}</b>",
        f"alpha {layer.alpha:.3f}{error} · {null}",
        f"{layer.rows} {TIMES} {layer.cols} · {windows_text(layer)}",
    ]
    if not layer.comparable:
        lines.append("<i>not comparable with other layers: its window is not that of the run</i>")
    if layer.reason:
        lines.append(f"<i>{safe(shorten(layer.reason, 90))}</i>")
    return "<br>".join(lines)


def windows_text(layer: LayerRecord) -> str:
    """How a layer was cut: ``9 windows of 64 x 64``."""
    plural = "window" if layer.n_windows == 1 else "windows"
    return f"{layer.n_windows:,} {plural} of {layer.window_rows} {TIMES} {layer.window_cols}"


def shorten(text: str, most: int = 64) -> str:
    """At most ``most`` characters, the middle left out."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _add_null(fig: go.Figure, layers: Sequence[Numbered], depth: Depth) -> None:
    """A band from the lowest to the highest null (2 sd) at each place, dotted along the middle."""
    known = [
        (
            x,
            layer.alpha_null,
            2 * layer.alpha_null_sd if math.isfinite(layer.alpha_null_sd) else 0.0,
        )
        for (_, layer), x in zip(layers, depth.places, strict=True)
        if math.isfinite(layer.alpha_null)
        and (layer.comparable or not any(y.comparable for _, y in layers))
    ]
    if not known:
        return
    xs = sorted({x for x, _, _ in known})
    low = [min(null - half for x, null, half in known if x == place) for place in xs]
    high = [max(null + half for x, null, half in known if x == place) for place in xs]
    mid = [float(np.mean([null for x, null, _ in known if x == place])) for place in xs]
    ends = [xs[0] - 0.5, *map(float, xs), xs[-1] + 0.5]
    low, high, mid = _widen(low), _widen(high), _widen(mid)
    shared = {"mode": "lines", "hoverinfo": "skip", "legendgroup": "null"}
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
    return [values[0], *values, values[-1]]


def _add_kind(
    fig: go.Figure, kind: str, mine: list[tuple[int, LayerRecord, int]], style: tuple[str, str]
) -> None:
    """Points of one kind and the line through them, or through the means where places repeat."""
    xs = sorted({x for _, _, x in mine})
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
) -> None:  # fmt: skip
    colour, symbol = style
    errors = [layer.alpha_se if math.isfinite(layer.alpha_se) else None for _, layer, _ in mine]
    fig.add_scatter(
        x=[x for _, _, x in mine],
        y=[layer.alpha for _, layer, _ in mine],
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
            "size": 8 if len(mine) < 60 else 6,
        },
        error_y={"type": "data", "array": errors, "thickness": 1.2, "width": 0, "color": colour},
    )


def block_kind_heatmap(results: Results) -> go.Figure:
    """Alpha of every block and kind, the mean where a block holds several; only comparable layers, others as a ring."""
    layers = [(i, x) for i, x in measured(results) if x.block is not None]
    kinds = list(kind_styles([layer.kind for _, layer in layers]))
    fig = figure(
        xaxis=axis("block", showgrid=False), yaxis=axis("", showgrid=False, autorange="reversed")
    )
    if not layers:
        return note(fig, "no layer lies in a block")
    depth = depth_of([(layer.name, layer.block) for _, layer in layers])
    columns = sorted(depth.labels)
    cells: dict[tuple[int, int], list[Numbered]] = {}
    for entry, x in zip(layers, depth.places, strict=True):
        cells.setdefault((kinds.index(entry[1].kind), columns.index(x)), []).append(entry)
    shape = len(kinds), len(columns)
    values: list[list[float | None]] = [[None] * shape[1] for _ in range(shape[0])]
    rows: list[list[int | None]] = [[None] * shape[1] for _ in range(shape[0])]
    texts = [["" for _ in range(shape[1])] for _ in range(shape[0])]
    for (k, b), members in cells.items():
        alphas = [layer.alpha for _, layer in members if layer.comparable]
        values[k][b] = float(np.mean(alphas)) if alphas else None
        rows[k][b] = members[0][0]
        label = depth.labels[columns[b]]
        texts[k][b] = (
            hover(members[0][1]) if len(members) == 1 else _cell_text(kinds[k], label, alphas)
        )
    _draw_cells(fig, values, rows, texts)
    rings = [
        (b, k)
        for (k, b), members in cells.items()
        if not any(layer.comparable for _, layer in members)
    ]
    if rings:
        fig.add_scatter(
            x=[b for b, _ in rings], y=[k for _, k in rings], mode="markers", hoverinfo="skip", showlegend=False,
            marker={"symbol": "circle-open", "size": 7, "color": NULL},
        )  # fmt: skip
    places, labels = depth.ticks()
    fig.update_xaxes(
        tickvals=[columns.index(x) for x in places],
        ticktext=[safe(x) for x in labels],
        title_text=depth.title,
    )
    fig.update_yaxes(
        tickvals=list(range(shape[0])), ticktext=[safe(shorten(kind, 18)) for kind in kinds]
    )
    fig.update_layout(height=min(900, 120 + 34 * shape[0]), margin={"t": 16})
    return fig


def _cell_text(kind: str, block: str, alphas: list[float]) -> str:
    title = f"<b>{safe(kind)}, block {safe(block)}</b>"
    if not alphas:
        return f"{title}<br>not comparable with other layers"
    spread = f"{min(alphas):.3f} to {max(alphas):.3f}"
    return f"{title}<br>mean alpha {np.mean(alphas):.3f} of {len(alphas)} layers ({spread})"


def _draw_cells(
    fig: go.Figure,
    values: list[list[float | None]],
    rows: list[list[int | None]],
    texts: list[list[str]],
) -> None:
    fig.add_heatmap(
        z=values,
        customdata=rows,
        hovertext=texts,
        hoverinfo="text",
        hoverongaps=False,
        xgap=2,
        ygap=2,
        colorscale=[list(stop) for stop in HEAT_SCALE],
        colorbar={
            "title": {"text": "alpha", "font": {"size": 13}},
            "thickness": 10,
            "outlinewidth": 0,
            "len": 0.9,
            "nticks": 5,
        },
    )


def find_layer(results: Results, name: str) -> tuple[LayerRecord, Spectrum]:
    """The layer of this name and its spectrum; a SpectailError says what is there instead."""
    by_name = {layer.name: layer for layer in results.layers}
    if name not in by_name:
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
    """The spectrum of one layer: density per decade with tail fit, xmin and null, and the survival curve on log-log."""
    layer, spectrum = find_layer(results, name)
    curves = spectrum_curves(layer, spectrum)
    fig = spectrum_figure(curves)
    fig.update_xaxes(range=shown_range(spectrum, curves))
    error = f" ± {layer.alpha_se:.3f}" if math.isfinite(layer.alpha_se) else ""
    title = f"{safe(shorten(name, 80))}, alpha {layer.alpha:.3f}{error}"
    fig.update_layout(title={"text": title, "font": {"size": 15}}, margin={"t": 88})
    return fig


def spectrum_figure(curves: dict[str, Curve]) -> go.Figure:
    """The two panels with the given curves; the page keeps one with none, and fills in the layer that is chosen."""
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
    second = {"xaxis": "x2", "yaxis": "y2", "showlegend": False}
    looks: dict[str, dict[str, object]] = {
        "histogram": {
            "name": "eigenvalues", "line": {"color": ACCENT, "width": 1, "shape": "hv"}, "fill": "tozeroy",
            "fillcolor": "rgba(47, 111, 196, 0.30)", "hovertemplate": "%{x:.3g}: %{y:.3f} per decade<extra></extra>",
        },
        "null": {"name": "random matrix of the same variance", "line": {"color": NULL, "width": 2, "dash": "dot"}},
        "fit": {"name": "tail fit", "line": {"color": FIT, "width": 2.5}},
        "xmin": {"name": "xmin", "line": {"color": FIT, "width": 1, "dash": "dash"}},
        "survival": {
            "name": "eigenvalues", "mode": "markers", "marker": {"color": ACCENT, "size": 5}, **second,
            "hovertemplate": "%{y:.3g} of the eigenvalues ≥ %{x:.3g}<extra></extra>",
        },
        "null survival": {"name": "random matrix", "line": {"color": NULL, "width": 2, "dash": "dot"}, **second},
        "fit survival": {"name": "tail fit", "line": {"color": FIT, "width": 2.5}, **second},
        "xmin survival": {"name": "xmin", "line": {"color": FIT, "width": 1, "dash": "dash"}, **second},
    }  # fmt: skip
    for meta, look in looks.items():
        curve = curves.get(meta)
        xs, ys = (curve.x, curve.y) if curve else ([], [])
        fig.add_scatter(
            **{
                "x": xs,
                "y": ys,
                "mode": "lines",
                "meta": meta,
                "legendgroup": meta.split()[0],
                **look,
            }
        )
    return fig


def farms_against_full(results: Results) -> go.Figure:
    """Alpha over windows against alpha of the full spectrum, per kind, for the layers that have both."""
    layers = [(i, x) for i, x in measured(results) if math.isfinite(x.alpha_full)]
    fig = figure(xaxis=axis("alpha of the full spectrum"), yaxis=axis("alpha over windows (FARMS)"))
    if not layers:
        return note(fig, "no full-spectrum alphas: run with --full-spectrum")
    ends = [x for _, layer in layers for x in (layer.alpha, layer.alpha_full)]
    fig.add_scatter(
        x=[min(ends), max(ends)], y=[min(ends), max(ends)], mode="lines", name="equal", hoverinfo="skip",
        line={"color": NULL, "width": 1.5, "dash": "dot"},
    )  # fmt: skip
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
