"""The page of several checkpoints: alpha over the steps of a training run, and whether it moves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from spectail.basics.texts import coded, first_names, plural
from spectail.report import page
from spectail.report.page import Chart, Column, Page, Paragraph, Section
from spectail.report.run_page import command, model_name, spec_line
from spectail.report.theme import NULL, NULL_FILL, axis, figure, kind_styles, safe
from spectail.results.trajectory import STILL, Trajectory

if TYPE_CHECKING:
    import plotly.graph_objects as go

EYEBROW = "Alpha over training"
"""The line above the heading, by which ``page_mark`` recognises the page."""
VIEW = (
    Column("name", "Layer", "name"),
    Column("block", "Block", "count"),
    Column("kind", "Kind", "text"),
    Column("first", "First", "fixed", help="alpha of the first checkpoint"),
    Column("last", "Last", "fixed", help="alpha of the last checkpoint"),
    Column("change", "Second half", "signed", help="how far alpha moved, by a straight line"),
    Column("half_width", "± 95 %", "fixed", help="half of the confidence interval"),
    Column("status", "Verdict", "status"),
)
MEANS = Section(
    id="means",
    title="Means of the kinds of layer",
    lead="The dotted line is a matrix of independent entries.",
    chart=Chart(
        "kinds",
        "Mean alpha of each kind of layer over the steps",
        "Bars are the standard error of the mean by the error bars of the layers. They are meant "
        "for independent models: between two checkpoints of one run they are too wide.",
    ),
)
LAYERS = Section(
    id="curves",
    title="Every layer",
    lead="One line per layer; buttons hide a kind.",
    chart=Chart("curves-chart", "Alpha of every layer over the steps"),
)


def trajectory_html(found: Trajectory) -> str:
    """Write one HTML file that opens offline and shows alpha over the checkpoints."""
    rows = _rows(found)
    payload = {
        "figures": {
            "kinds": page.figure_data(kinds_over_steps(found)),
            "curves-chart": page.figure_data(layers_over_steps(found)),
        },
        "table": {
            "columns": [column.key for column in VIEW],
            "rows": [[row[column.key] for column in VIEW] for row in rows],
            "view": [column.to_dict() for column in VIEW],
        },
    }
    run = found.runs[-1].run
    written = Page(
        title=f"{found.labels[0]} to {found.labels[-1]}",
        eyebrow=EYEBROW,
        heading=f"{found.labels[0]} to {found.labels[-1]}",
        settings=(("", spec_line(run)),),
        numbers=_key_numbers(found, rows),
        sections=(Section(id="words", title="In words", words=_words(found, rows)), MEANS, LAYERS),
        table_lead="Every layer that was measured in all checkpoints.",
        command=command(run, [x.run.given or x.run.source for x in found.runs]),
        origins=[("Checkpoints", ", ".join(map(_named, found.runs)))],
    )
    return page.render(written, payload)


def kinds_over_steps(found: Trajectory) -> go.Figure:
    """Draw the mean alpha of each kind of layer over the steps, with its error and the null."""
    fig = figure(xaxis=axis("step", showgrid=False), yaxis=axis("mean alpha"))
    _add_null(fig, found)
    records = {name: found.records(name) for name in found.layers}
    for kind, (colour, symbol) in kind_styles([r[0].kind for r in records.values()]).items():
        mine = [r for r in records.values() if r[0].kind == kind]
        alphas = np.array([[x.alpha for x in layer] for layer in mine])
        errors = np.array([[x.alpha_se for x in layer] for layer in mine])
        fig.add_scatter(
            x=list(found.steps),
            y=alphas.mean(axis=0).tolist(),
            error_y={
                "type": "data",
                "array": (np.sqrt((errors**2).sum(axis=0)) / len(mine)).tolist(),
                "thickness": 1.2,
                "width": 0,
                "color": colour,
            },
            hovertext=[f"{safe(kind)}, {safe(label)}" for label in found.labels],
            hoverinfo="text+y",
            mode="lines+markers",
            name=f"{safe(kind)} ({len(mine)})",
            legendgroup=kind,
            line={"color": colour, "width": 2},
            marker={"color": colour, "symbol": symbol, "size": 7},
        )
    return fig


def layers_over_steps(found: Trajectory) -> go.Figure:
    """Draw alpha of every layer over the steps."""
    fig = figure(xaxis=axis("step", showgrid=False), yaxis=axis("alpha"), height=520)
    _add_null(fig, found)
    names = {name: i for i, name in enumerate(found.layers)}
    kinds = {name: found.records(name)[0].kind for name in names}
    styles = kind_styles(list(kinds.values()))
    shown: set[str] = set()
    for name, values in found.alphas().items():
        kind = kinds[name]
        fig.add_scatter(
            x=list(found.steps),
            y=values.tolist(),
            customdata=[names[name]] * len(values),
            hovertext=[f"{safe(name)}<br>{safe(label)}" for label in found.labels],
            hoverinfo="text+y",
            mode="lines+markers",
            name=safe(kind),
            legendgroup=kind,
            showlegend=kind not in shown,
            line={"color": styles[kind][0], "width": 1.2},
            marker={"color": styles[kind][0], "symbol": styles[kind][1], "size": 4},
        )
        shown.add(kind)
    return fig


def _add_null(fig: go.Figure, found: Trajectory) -> None:
    """Draw the null, and a band of two standard deviations of a random matrix around it."""
    layers = [x for x in found.runs[0].layers if x.comparable and math.isfinite(x.alpha_null)]
    if not layers:
        return
    null = float(np.median([x.alpha_null for x in layers]))
    spread = [x.alpha_null_sd for x in layers if math.isfinite(x.alpha_null_sd)]
    ends = [found.steps[0], found.steps[-1]]
    shared = {"mode": "lines", "hoverinfo": "skip", "legendgroup": "null"}
    if spread:
        half = 2 * max(spread)
        fig.add_scatter(x=ends, y=[null - half] * 2, line={"width": 0}, showlegend=False, **shared)
        fig.add_scatter(
            x=ends, y=[null + half] * 2, line={"width": 0}, fill="tonexty", fillcolor=NULL_FILL,
            showlegend=False, **shared,
        )  # fmt: skip
    line = {"color": NULL, "width": 1.5, "dash": "dot"}
    fig.add_scatter(x=ends, y=[null] * 2, name="random matrix", line=line, **shared)


def _rows(found: Trajectory) -> list[dict[str, Any]]:
    """Return the rows of the table: one per layer, with how it moved."""
    rows = []
    for name, values in found.alphas().items():
        record, moved = found.records(name)[0], found.drift(values)
        rows.append(
            {
                "name": name, "block": record.block, "kind": record.kind,
                "first": float(values[0]), "last": float(values[-1]), "change": moved.change,
                "half_width": moved.half_width, "status": moved.verdict,
            }
        )  # fmt: skip
    return rows


def _key_numbers(found: Trajectory, rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return the large numbers at the top of the page as (what, number, note)."""
    mean = found.mean()
    counts = [sum(row["status"] == verdict for row in rows) for verdict in ("stopped", "moving")]
    return [
        ("Checkpoints", f"{len(found.runs):,}", f"{found.labels[0]} to {found.labels[-1]}"),
        ("Mean alpha", f"{mean[-1]:.3f}", f"{mean[0]:.3f} at the first checkpoint"),
        ("Stopped", f"{counts[0]:,}", f"of {plural(len(rows), 'layer')}, surely below {STILL:g}"),
        ("Moving", f"{counts[1]:,}", "alpha still moves, with 95 % confidence"),
    ]


def _words(found: Trajectory, rows: list[dict[str, Any]]) -> tuple[Paragraph, ...]:
    """Say whether alpha stopped moving, and in which layers it did not."""
    mean = found.drift(found.mean())
    moving = sorted(
        (row for row in rows if row["status"] == "moving"), key=lambda row: -abs(row["change"])
    )
    parts = [Paragraph("Mean alpha", f"{mean}.")]
    if moving:
        most = ", ".join(f"{coded(row['name'])} ({row['change']:+.3f})" for row in moving[:4])
        text = f"still moving: {len(moving):,} of {plural(len(rows), 'layer')}; most: {most}. By "
        text += f"chance about {0.05 * len(rows):.0f} would seem to."
        parts.append(Paragraph("Layers", text))
    if left := found.left_out:
        text = f"{first_names([coded(name) for name in left], 4)} have no alpha in every "
        text += "checkpoint, or one of another window, and are left out."
        parts.append(Paragraph("Left out", text, quiet=True))
    if found.note:
        parts.append(Paragraph("Order", found.note, quiet=True))
    rule = "a line is fitted to the second half of the checkpoints. Alpha stopped if the 95 % "
    rule += f"interval of its rise lies within ± {STILL:g}, and moves if the interval excludes 0; "
    rule += "else it is open. That alpha stands still does not show that training is done."
    parts.append(Paragraph("Rule", rule, quiet=True))
    return tuple(parts)


def _named(results: Any) -> str:
    return model_name(results.run)
