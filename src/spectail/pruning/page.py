"""The HTML page of a pruning run: ratios across depth, sparsity reached, and perplexity."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import plotly.graph_objects as go
from plotly.colors import qualitative, sample_colorscale

from spectail.allocation.allocation import Allocation
from spectail.basics.texts import coded, plural
from spectail.evaluation import Rule
from spectail.models.naming.blocks import block_numbers
from spectail.models.naming.kinds import kind_of
from spectail.pruning.pipeline import Pruned, PruningPlan
from spectail.pruning.report import NO_GAIN, PrunedLayer, PruneReport, Selected
from spectail.report import page
from spectail.report.depth import depth_of
from spectail.report.page import Chart, Column, Page, Paragraph, Section
from spectail.report.plots import shorten
from spectail.report.theme import ACCENT, FIT, HEAT_SCALE, NULL, axis, figure, note, safe

VIEW = (
    Column("name", "Layer", "name"),
    Column("block", "Block", "count"),
    Column("kind", "Kind", "text"),
    Column("requested", "Asked", "fixed", help="the ratio of zeros that the allocation gives"),
    Column("realised", "Reached", "fixed", help="the ratio of zeros in the saved weights"),
    Column("zeros", "Zeros", "count"),
    Column("numel", "Weights", "count"),
    Column("status", "Status", "status"),
    Column("reason", "Remarks", "why", main=False),
    Column("alpha", "Alpha of its unit", "fixed", main=False, help="what the ratio was given by"),
    Column(
        "quota",
        "Quota",
        "text",
        main=False,
        help="what the ratio became: a number of zeros, or n:m",
    ),
)
COLUMNS = tuple(column.key for column in VIEW)

_BOS: dict[Rule, str] = {
    "every": "Every calibration sample and every block of the other texts starts with the "
    "beginning-of-sequence token, which counts as one of its tokens.",
    "first": "Every text but the calibration text starts with one beginning-of-sequence token, as "
    "in the published tables; the blocks after the first have none.",
    "none": "No text has a beginning-of-sequence token.",
}


LISTED = 8
"""How many candidates the text lists; a choice of eps alone has fewer."""


def prune_html(done: Pruned, *, source: str, command: str) -> str:
    """Return the page of a run; ``source`` names the model, ``command`` repeats the run."""
    report = done.report
    figures = {"ratios": page.figure_data(ratios_by_depth(done.allocation, report, done.others))}
    words = tuple(Paragraph(topic, text, quiet=topic == "Left out") for topic, text in _words(done))
    sections = [
        Section(id="words", title="In words", words=words),
        _depth_section(report.requested),
    ]
    if report.selected:
        # The selection has a picture of its own, so that it is not taken for a test result.
        figures["selection"] = page.figure_data(perplexity_by_eps(report.selected))
        sections.append(_eps_section(report.selected.text))
    # Windows paths too.
    title = source.replace("\\", "/").rstrip("/").split("/")[-1] or source
    written = Page(
        title=f"{title}, pruned",
        eyebrow="Pruned model",
        heading=title,
        settings=(("", _spec(done)),),
        numbers=_key_numbers(done),
        sections=tuple(sections),
        table_lead="Every layer that was pruned, and those that were left out.",
        command=command,
        origins=_origins(source, done),
    )
    # The script in the page draws its table from these rows.
    table = {"columns": COLUMNS, "rows": _rows(done), "view": [column.to_dict() for column in VIEW]}
    return page.render(written, {"figures": figures, "table": table})


def _depth_section(sparsity: float) -> Section:
    caption = (
        "Lines are means over the weights of a block. A point is one layer as it was saved; it "
        f"opens its row below. Every line has the same sparsity over all weights, {sparsity:.4g}."
    )
    return Section(
        id="depth-section",
        title="Ratios across depth",
        lead="The allocation used, and others of the same sparsity that were not.",
        chart=Chart(
            "ratios", "Ratio of zeros by depth, for the allocation used and others", caption
        ),
    )


def _eps_section(text: str) -> Section:
    return Section(
        id="eps-section",
        title="The choice of eps",
        lead=f"On {text}: text that eps was chosen by, so these are no test results.",
        chart=Chart("selection", "Selection perplexity by eps"),
    )


def ratios_by_depth(
    allocation: Allocation, report: PruneReport, others: Mapping[str, Allocation]
) -> go.Figure:
    """Draw the mean ratio of each block for each allocation, and the ratio reached in a layer."""
    # Left-out layers are not on the picture, so they take no place along its axis.
    depth = depth_of(list(block_numbers(layer.name for layer in report.layers).items()))
    place = dict(zip([layer.name for layer in report.layers], depth.places, strict=True))
    ticks, labels = depth.ticks()
    fig = figure(
        xaxis=axis(depth.title, showgrid=False, tickvals=ticks, ticktext=[safe(x) for x in labels]),
        yaxis=axis("ratio of zeros"),
    )
    _add_line(fig, "used", _by_place(allocation, place), {"color": FIT, "width": 3.5})
    fig.add_scatter(
        x=[place[layer.name] for layer in report.layers],
        y=[layer.realised for layer in report.layers],
        # The row of the table that a click on the point opens.
        customdata=list(range(len(report.layers))),
        hovertext=[_hover(layer) for layer in report.layers],
        hoverinfo="text",
        mode="markers",
        name="reached, each layer",
        legendgroup="reached",
        marker={"color": FIT, "symbol": "circle-open", "size": 7},
    )
    for name, look in _looks(others).items():
        _add_line(fig, name, _by_place(others[name], place), look)
    # The line and the points of this run come first in the legend, but lie on top of the others.
    fig.data[0].zorder = fig.data[1].zorder = 1
    return fig


def _looks(others: Mapping[str, Allocation]) -> dict[str, dict[str, Any]]:
    """Return the line style of each allocation that was not used, uniform first."""
    candidates = [name for name in others if name != "uniform"]
    # The middle of the scale: its ends are too pale or too dark beside the line of the run.
    places = [0.2 + 0.4 * i / max(1, len(candidates) - 1) for i in range(len(candidates))]
    colours = sample_colorscale([colour for _, colour in HEAT_SCALE], places)
    looks: dict[str, dict[str, Any]] = {}
    if "uniform" in others:
        looks["uniform"] = {"color": NULL, "width": 2, "dash": "dot"}
    for name, colour in zip(candidates, colours, strict=True):
        looks[name] = {"color": colour, "width": 1.5, "dash": "dash"}
    return looks


def _add_line(
    fig: go.Figure, name: str, points: Mapping[int, float], line: Mapping[str, Any]
) -> None:
    fig.add_scatter(
        x=list(points), y=list(points.values()), mode="lines",
        name=safe(name), legendgroup=name, line=dict(line),
        hovertemplate=f"{safe(name)}, block %{{x}}: %{{y:.4f}}<extra></extra>",
    )  # fmt: skip


def _by_place(allocation: Allocation, place: Mapping[str, int]) -> dict[int, float]:
    """Return the mean ratio at every place along the model, weighted by numbers of weights."""
    zeros: dict[int, float] = {}
    numel: dict[int, int] = {}
    for share in allocation.shares:
        where = place.get(share.name)
        if where is not None:
            # Weighted by size: the mean of the ratios of small layers would mislead.
            zeros[where] = zeros.get(where, 0.0) + share.value * share.numel
            numel[where] = numel.get(where, 0) + share.numel
    return {where: zeros[where] / numel[where] for where in sorted(zeros)}


def perplexity_by_eps(selected: Selected) -> go.Figure:
    """Draw the selection perplexity of every candidate that has one, and mark the chosen one."""
    tried = sorted({setting.eps for setting, _ in selected.perplexities})
    scored = {s: value for s, value in selected.perplexities if math.isfinite(value)}
    # A linear axis would press the good candidates into one line beside a broken one.
    wide = bool(scored) and max(scored.values()) > 20 * min(scored.values())
    fig = figure(
        xaxis=axis("eps", tickvals=tried, range=[min(tried) - 0.03, max(tried) + 0.03]),
        yaxis=axis("selection perplexity", **({"type": "log"} if wide else {})),
        height=320,
    )
    if not scored:
        return note(fig, "no candidate has a finite perplexity")
    # A rule with several forms has a line for each; the colours go around.
    for i, form in enumerate(dict.fromkeys(setting.form for setting in scored)):
        points = {s.eps: value for s, value in scored.items() if s.form == form}
        colour = ACCENT if not form else qualitative.Safe[i % len(qualitative.Safe)]
        fig.add_scatter(
            x=list(points), y=list(points.values()), mode="lines+markers",
            name=form or "pruned", legendgroup=form or "pruned",
            line={"color": colour, "width": 2}, marker={"color": colour, "size": 9},
            hovertemplate=f"{form} eps %{{x:g}}: %{{y:.5g}}<extra></extra>",
        )  # fmt: skip
    fig.add_scatter(
        x=[selected.setting.eps], y=[scored[selected.setting]], mode="markers",
        name="chosen", legendgroup="chosen",
        marker={"color": FIT, "symbol": "diamond", "size": 13}, hoverinfo="skip",
    )  # fmt: skip
    return fig


def _hover(layer: PrunedLayer) -> str:
    asked = f"asked {layer.requested:.4f}, reached {layer.realised:.4f}"
    count = f"{layer.zeros:,} of {layer.numel:,} weights"
    return f"<b>{safe(shorten(layer.name))}</b><br>{asked}<br>{count}"


def _rows(done: Pruned) -> list[list[Any]]:
    """Return the table's rows: pruned layers in the report's order, then those left out."""
    alphas = {share.name: share.alpha for share in done.allocation.shares}
    found: list[dict[str, Any]] = [
        {
            "name": layer.name, "requested": layer.requested, "realised": layer.realised,
            "zeros": layer.zeros, "numel": layer.numel, "status": "pruned", "reason": layer.note,
            "alpha": alphas.get(layer.name), "quota": layer.quota,
        }
        for layer in done.report.layers
    ]  # fmt: skip
    found += [
        {"name": x.name, "status": "left out", "reason": x.reason, "quota": ""}
        for x in done.report.left_out
    ]
    numbers = block_numbers(row["name"] for row in found)
    for row in found:
        row |= {"block": numbers[row["name"]], "kind": kind_of(row["name"])}
    return [[row.get(key) for key in COLUMNS] for row in found]


def _key_numbers(done: Pruned) -> list[tuple[str, str, str]]:
    report, ratios = done.report, [layer.realised for layer in done.report.layers]
    numbers = [("Sparsity reached", f"{report.realised:.4f}", f"asked {report.requested:.4f}")]
    if ratios:
        numbers.append(
            ("Layers", f"{len(ratios):,}", f"from {min(ratios):.3f} to {max(ratios):.3f} zeros")
        )
    for found in report.evaluated:
        after = f"{found.after:.4g}" if math.isfinite(found.after) else "–"
        numbers.append(
            (
                "Perplexity",
                f"{found.before:.4g} → {after}",
                f"dense → pruned, test text {found.text}",
            )
        )
    numbers.append(("Smaller or faster", "no", "zeros alone change neither size nor speed"))
    return numbers


def _spec(done: Pruned) -> list[tuple[str, str]]:
    """Return the settings of the run as (word, value) pairs."""
    plan = done.plan
    parts = [("method", done.report.method), ("sparsity", f"{plan.sparsity:g}")]
    if done.report.pattern:
        parts.append(("pattern", done.report.pattern))
    parts.append(("allocation", shorten(plan.allocator.name)))
    if plan.eps is not None:
        chosen = done.report.selected
        parts.append(("eps", f"{chosen.setting.key} (chosen)" if chosen else f"{plan.eps}"))
    if done.report.calibration:
        samples, length = done.report.calibration
        parts.append(("calibration", f"{samples} × {length} tokens"))
    if done.report.bos:
        parts.append(("BOS", done.report.describe_bos()))
    return parts


def _words(done: Pruned) -> list[tuple[str, str]]:
    """Describe the run in (topic, text) paragraphs."""
    report, allocation = done.report, done.allocation
    found = [
        ("Zeros", NO_GAIN),
        ("Method", f"`{report.method}`: {_method(done)}"),
        (
            "Sparsity",
            f"asked {report.requested:.6f}, reached {report.realised:.6f} over {report.numel:,} "
            f"weights in {plural(len(report.layers), 'layer')}.",
        ),
        (
            "Allocation",
            " ".join([_rule(done.plan, allocation), *allocation.deviations, *allocation.notes]),
        ),
    ]
    if report.depth:
        found.append(("Depth", " ".join(report.depth.describe("the ratios"))))
    if report.selected:
        found.append(("Choice of eps", _choice(report.selected)))
    found += [
        ("Perplexity", f"{evaluated.describe()}, {evaluated.after.n_tokens:,} tokens.")
        for evaluated in report.evaluated
    ]
    if report.bos:
        found.append(("BOS", f"{report.describe_bos()}. {_BOS[report.bos]}"))
    if not report.evaluated:
        unknown = "not measured: `--evaluate FILE` measures it on a test text before and after."
        found.append(("Perplexity", unknown))
    found += [("Remark", f"{coded(note.subject)}: {note.text}.") for note in report.notes]
    if report.left_out:
        reasons = Counter(layer.reason for layer in report.left_out)
        counts = "; ".join(f"{plural(n, 'layer')}: {reason}" for reason, n in reasons.items())
        found.append(("Left out", f"{counts}. They are as they were."))
    return found


def _method(done: Pruned) -> str:
    """Describe what the method did, in full sentences."""
    text = done.plan.method.meaning
    if done.plan.method.statistic is not None:
        text += (
            " Blocks were pruned in order, on inputs that went through the pruned blocks before "
            "them."
        )
    if done.report.pattern:
        text += f" Zeros lie in groups along the input, {done.report.pattern} over all layers."
    return text


def _rule(plan: PruningPlan, allocation: Allocation) -> str:
    """Describe how the allocation chose the ratios."""
    settings, name = allocation.settings, f"`{plan.allocator.name}`"
    if "map" not in settings:
        numbers = [
            f"{word} {settings[word]:g}" if word != "form" else f"form {settings[word]}"
            for word in ("form", "eps", "lambda")
            if word in settings
        ]
        return f"{name}: goes by {'; '.join([plan.allocator.meaning, *numbers])}."
    how = f"per {settings['level']}, map {settings['map']}"
    within = " within its kind of layer" if settings.get("standardize_by_kind") else ""
    return f"{name}: more zeros where alpha is higher{within}, {how}."


def _choice(selected: Selected) -> str:
    """Describe the choice; of many candidates only the best are named, the picture has all."""
    by_score = sorted(selected.perplexities, key=lambda pair: (math.isnan(pair[1]), pair[1]))
    many = len(by_score) > LISTED
    scores = ", ".join(
        f"{s.key}: {value:.5g}" if math.isfinite(value) else f"{s.key}: no number"
        for s, value in (by_score[:LISTED] if many else selected.perplexities)
    )
    best = f"the best of {len(by_score)}: " if many else ""
    return (
        f"{selected.setting.key}, the candidate of the lowest selection perplexity "
        f"({best}{scores}; dense {selected.dense:.5g}) on {selected.text}, each pruned by the same "
        "method on the same calibration text. This is no test result."
    )


def _origins(source: str, done: Pruned) -> list[tuple[str, str]]:
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("spectail", "torch", "transformers")
    )
    items = [
        ("Source", source),
        ("Fingerprint", done.allocation.fingerprint),
        ("Versions", versions),
    ]
    return [*items, ("Seconds", f"{done.report.seconds:.1f} for pruning alone")]
