"""The heat map of a run: alpha of every kind of layer in every block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spectail.report.depth import depth_of
from spectail.report.plots import Numbered, hover, measured, shorten
from spectail.report.theme import HEAT_SCALE, NULL, axis, figure, kind_styles, note, safe
from spectail.results.records import Results

if TYPE_CHECKING:
    import plotly.graph_objects as go

Cells = dict[tuple[int, int], list[Numbered]]
"""The layers of every cell (row, column) of the heat map."""


def block_kind_heatmap(results: Results) -> go.Figure:
    """Draw alpha of every block and kind of layer; the mean if a block holds several of a kind.

    Only comparable layers count; a ring marks a cell that has none.
    """
    layers = [(i, x) for i, x in measured(results) if x.block is not None]
    kinds = list(kind_styles([layer.kind for _, layer in layers]))
    fig = figure(
        xaxis=axis("block", showgrid=False), yaxis=axis("", showgrid=False, autorange="reversed")
    )
    if not layers:
        return note(fig, "no layer lies in a block")
    depth = depth_of([(layer.name, layer.block) for _, layer in layers])
    # Places start below zero if layers precede the first block; columns count from zero.
    columns = sorted(depth.labels)
    cells: Cells = {}
    for entry, x in zip(layers, depth.places, strict=True):
        cells.setdefault((kinds.index(entry[1].kind), columns.index(x)), []).append(entry)
    _add_cells(fig, cells, kinds, [depth.labels[x] for x in columns])
    places, labels = depth.ticks()
    fig.update_xaxes(
        tickvals=[columns.index(x) for x in places],
        ticktext=[safe(x) for x in labels],
        title_text=depth.title,
    )
    fig.update_yaxes(
        tickvals=list(range(len(kinds))), ticktext=[safe(shorten(kind, 18)) for kind in kinds]
    )
    fig.update_layout(height=min(900, 120 + 34 * len(kinds)), margin={"t": 16})
    return fig


def _add_cells(fig: go.Figure, cells: Cells, kinds: list[str], blocks: list[str]) -> None:
    """Draw a cell for every kind (row) and block (column), empty if no layer belongs there."""
    values: list[list[float | None]] = [[None] * len(blocks) for _ in kinds]
    rows: list[list[int | None]] = [[None] * len(blocks) for _ in kinds]
    texts = [["" for _ in blocks] for _ in kinds]
    rings = []
    for (k, b), members in cells.items():
        alphas = [layer.alpha for _, layer in members if layer.comparable]
        values[k][b] = float(np.mean(alphas)) if alphas else None
        # A click opens one layer: the first of the cell.
        rows[k][b] = members[0][0]
        texts[k][b] = (
            hover(members[0][1]) if len(members) == 1 else _cell_text(kinds[k], blocks[b], alphas)
        )
        if not alphas:
            rings.append((b, k))
    _draw_cells(fig, values, rows, texts)
    if rings:
        fig.add_scatter(
            x=[b for b, _ in rings],
            y=[k for _, k in rings],
            mode="markers",
            hoverinfo="skip",
            showlegend=False,
            marker={"symbol": "circle-open", "size": 7, "color": NULL},
        )


def _cell_text(kind: str, block: str, alphas: list[float]) -> str:
    """Describe a cell that holds several layers."""
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
    """Draw the heat map itself."""
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
