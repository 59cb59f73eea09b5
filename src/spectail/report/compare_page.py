"""The page of a comparison of two runs: words, figures of the changes, a table of all layers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spectail.basics.texts import coded, plural
from spectail.report import page
from spectail.report.depth import depth_of
from spectail.report.evidence import CLEAR, threshold
from spectail.report.page import Chart, Column, Page, Paragraph, Section
from spectail.report.run_page import full_path, model_name, spec_line
from spectail.report.theme import NULL, axis, figure, kind_styles, note, safe
from spectail.results.compare import PAIRED, Comparison
from spectail.results.records import Results

if TYPE_CHECKING:
    import plotly.graph_objects as go

EYEBROW = "What moved"
"""The line above the heading, by which ``page_mark`` recognises the page."""
CHANGE = "change of alpha (B \u2212 A)"
"""Title of the axis."""
VIEW = (
    Column("name", "Layer", "name"),
    Column("block", "Block", "count"),
    Column("kind", "Kind", "text"),
    Column("alpha_a", "Alpha A", "fixed"),
    Column("alpha_b", "Alpha B", "fixed"),
    Column("alpha_change", "Change", "signed", help="B - A; below zero the tail became heavier"),
    Column("z", "In errors", "errors", help="the change divided by the combined standard error"),
    Column("status", "Status", "status"),
    Column("reason", "Reason", "why", main=False),
    Column("alpha_se_a", "± A", "fixed", main=False),
    Column("alpha_se_b", "± B", "fixed", main=False),
    Column("stable_rank_a", "Stable rank A", "number", main=False),
    Column("stable_rank_b", "Stable rank B", "number", main=False),
    Column("lambda_max_a", "Largest eigenvalue A", "number", main=False),
    Column("lambda_max_b", "Largest eigenvalue B", "number", main=False),
    Column("weight_var_a", "Weight variance A", "number", main=False),
    Column("weight_var_b", "Weight variance B", "number", main=False),
    Column("xmin_a", "xmin A", "number", main=False),
    Column("xmin_b", "xmin B", "number", main=False),
    Column("name_a", "Name in A", "text", main=False),
    Column("name_b", "Name in B", "text", main=False),
)


CHANGE_BY_DEPTH = Section(
    id="depth",
    title="Change across depth",
    lead="Below zero the tail is heavier in B.",
    chart=Chart(
        "change",
        "Change of alpha by depth",
        "Bars are one combined standard error. "
        "Only layers measured in the same window in both runs are drawn.",
    ),
)
A_AGAINST_B = Section(
    id="scatter",
    title="A against B",
    lead="Layers on the dotted line did not move.",
    chart=Chart("pairs", "Alpha in B against alpha in A"),
)


def compare_html(comparison: Comparison, a: Results, b: Results) -> str:
    """Write one HTML file that opens offline and shows the changes from run A to run B."""
    table = comparison.table
    payload = {
        "figures": {
            "change": page.figure_data(change_by_depth(comparison)),
            "pairs": page.figure_data(a_against_b(comparison)),
        },
        "table": {
            "columns": list(table.columns),
            "rows": [[_plain(value) for value in row] for row in table.itertuples(index=False)],
            "view": [column.to_dict() for column in VIEW],
        },
    }
    words = tuple(
        Paragraph(topic, text, quiet=topic == "Note") for topic, text in _words(comparison)
    )
    # Both runs may be of one file name; the settings below the title tell them apart.
    title = f"{model_name(a.run)} → {model_name(b.run)}"
    written = Page(
        title=title,
        eyebrow=EYEBROW,
        heading=title,
        settings=(("A", spec_line(a.run)), ("B", spec_line(b.run))),
        numbers=_key_numbers(comparison),
        sections=(Section(id="words", title="In words", words=words), CHANGE_BY_DEPTH, A_AGAINST_B),
        table_lead="Every layer of both runs, also those without a partner.",
        command="spectail compare DIR_A DIR_B",
        origins=_origins(a, b),
    )
    return page.render(written, payload)


def change_by_depth(comparison: Comparison) -> go.Figure:
    """Draw the change of alpha along the model: a line per kind, combined errors as bars."""
    paired = _drawable(comparison)
    blocks = [None if math.isnan(block) else int(block) for block in paired["block"]]
    depth = depth_of(list(zip(paired["name"].tolist(), blocks, strict=True)))
    places, labels = depth.ticks() if len(paired) else ([], [])
    fig = figure(
        xaxis=axis(
            depth.title, showgrid=False, tickvals=places, ticktext=[safe(x) for x in labels]
        ),
        yaxis=axis(CHANGE),
    )
    if not len(paired):
        return note(fig, "no layer was measured in the same window in both runs")
    fig.add_hline(y=0, line={"color": NULL, "width": 1.5, "dash": "dot"})
    placed = paired.assign(
        place=depth.places, error=np.hypot(paired["alpha_se_a"], paired["alpha_se_b"])
    )
    styles = kind_styles(list(dict.fromkeys(placed["kind"])))
    for kind, (colour, symbol) in styles.items():
        mine = placed[placed["kind"] == kind].sort_values("place", kind="stable")
        fig.add_scatter(
            x=mine["place"].tolist(),
            y=mine["alpha_change"].tolist(),
            error_y={
                "type": "data",
                "array": mine["error"].tolist(),
                "thickness": 1.2,
                "width": 0,
                "color": colour,
            },
            customdata=mine.index.tolist(),
            hovertext=[_hover(row) for row in mine.to_dict("records")],
            hoverinfo="text",
            mode="lines+markers" if mine["place"].is_unique and len(mine) > 1 else "markers",
            name=safe(kind),
            legendgroup=kind,
            line={"color": colour, "width": 2},
            marker={"color": colour, "symbol": symbol, "size": 7},
        )
    return fig


def a_against_b(comparison: Comparison) -> go.Figure:
    """Draw alpha in B over alpha in A; layers on the dotted line did not change."""
    paired = _drawable(comparison)
    fig = figure(xaxis=axis("alpha in A"), yaxis=axis("alpha in B"))
    if not len(paired):
        return note(fig, "no layer was measured in the same window in both runs")
    # The diagonal runs over the range of both runs.
    ends = [float(f(paired[["alpha_a", "alpha_b"]].to_numpy())) for f in (np.min, np.max)]
    line = {"color": NULL, "width": 1.5, "dash": "dot"}
    fig.add_scatter(
        x=ends,
        y=ends,
        mode="lines",
        line=line,
        name="no change",
        legendgroup="same",
        hoverinfo="skip",
    )
    for kind, (colour, symbol) in kind_styles(list(dict.fromkeys(paired["kind"]))).items():
        mine = paired[paired["kind"] == kind]
        fig.add_scatter(
            x=mine["alpha_a"].tolist(),
            y=mine["alpha_b"].tolist(),
            customdata=mine.index.tolist(),
            hovertext=[_hover(row) for row in mine.to_dict("records")],
            hoverinfo="text",
            mode="markers",
            name=safe(kind),
            legendgroup=kind,
            marker={"color": colour, "symbol": symbol, "size": 8},
        )
    return fig


def _drawable(comparison: Comparison) -> pd.DataFrame:
    """Return the rows of layers that were measured in the same window in both runs."""
    table = comparison.table
    return table[(table["status"] == PAIRED) & table["alpha_change"].notna()]


def _hover(row: Mapping[Hashable, Any]) -> str:
    """Write the text that a point shows when the pointer is over it."""
    errors = (
        f"{row['z']:+.1f} errors"
        if isinstance(row["z"], float) and math.isfinite(row["z"])
        else "no error bar"
    )
    return (
        f"<b>{safe(str(row['name']))}</b><br>{row['alpha_a']:.3f} → {row['alpha_b']:.3f} · {errors}"
    )


def _words(comparison: Comparison) -> list[tuple[str, str]]:
    """Describe the changes as (topic, text); only changes that exceed their errors count."""
    paired = _drawable(comparison)
    notes = [("Note", text) for text in comparison.warnings]
    if not len(paired):
        return notes
    middle = float(paired["alpha_change"].median())
    top = ", ".join(
        f"{coded(row['name'])} ({row['alpha_change']:+.3f})"
        for row in comparison.moved(3).to_dict("records")
    )
    return [
        ("Changes", _changes(paired)),
        ("Overall", f"The median change of alpha is {middle:+.3f}."),
        ("Moved most", f"{top}." if top else "No layer moved."),
        *notes,
    ]


def _changes(paired: pd.DataFrame) -> str:
    """Count the layers whose alpha changed by more than chance would reach in so many layers."""
    # The largest of many changes is large by chance: the limit grows with their number.
    limit = threshold(len(paired))
    clear = paired[paired["z"].abs() > limit]
    moved = "none moved clearly "
    if len(clear):
        heavier = int((clear["alpha_change"] < 0).sum())
        lighter = int((clear["alpha_change"] > 0).sum())
        moved = (
            f"{heavier:,} have a clearly heavier tail in B and {lighter:,} a clearly lighter one "
        )
    text = (
        f"Of {plural(len(paired), 'layer')} measured alike in both runs, {moved}"
        f"(by more than {limit:.1f} combined errors, which chance would hardly reach). "
        "The errors treat the runs as independent: for two states of one model they are too wide."
    )
    unknown = int(paired["z"].isna().sum())
    if unknown:
        text += f" {plural(unknown, 'layer')} without an error bar on both sides cannot be weighed."
    return text


def _key_numbers(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return the large numbers at the top of the page as (what, number, note)."""
    paired = _drawable(comparison)
    # A normal deviate exceeds two standard deviations with a probability of 0.0455.
    moved = int((paired["z"].abs() > CLEAR).sum())
    return [
        ("Layers compared", f"{len(paired):,}", f"of {len(comparison.table):,}"),
        (
            "Median change",
            f"{paired['alpha_change'].median():+.3f}" if len(paired) else "–",
            "of alpha, B - A",
        ),
        (
            "Moved",
            f"{moved:,}",
            f"by over {CLEAR:g} combined errors; chance gives {0.0455 * len(paired):.0f}",
        ),
    ]


def _origins(a: Results, b: Results) -> list[tuple[str, str]]:
    """Return the origin of the numbers of both runs as (what, value) pairs."""
    return [
        item
        for run, results in (("A", a), ("B", b))
        for item in (
            (f"Source {run}", full_path(results.run)),
            (f"Fingerprint {run}", results.run.fingerprint),
        )
    ]


def _plain(value: object) -> object:
    """Return a cell as a JSON value."""
    # NumPy's numbers are no JSON values.
    return value.item() if isinstance(value, np.generic) else value
