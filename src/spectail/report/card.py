"""A run as a block of Markdown for a model card: what was measured, and how sure it is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from spectail.basics.texts import plural, visible
from spectail.report.evidence import CLEAR, kind_means, sort_run
from spectail.report.run_page import command, model_name, spec_line
from spectail.report.words import titled_findings
from spectail.results.records import Results

MARK = "<!-- spectail card -->"
"""The first line of the block."""
PAPER = "https://arxiv.org/abs/2506.06280"
TOPICS = ("Range", "Random matrix", "Depth", "Change", "Odd ones")
"""The findings of the report that a card repeats."""


def card(results: Results) -> str:
    """Return the block: settings, alpha by kind of layer, what stands out, the command."""
    facts = {finding.topic: finding.text for finding in titled_findings(results)}
    stands_out = [f"- **{topic}**: {_sentence(facts[topic])}" for topic in TOPICS if topic in facts]
    parts = [
        MARK,
        f"## Heavy tails of the weights: {_text(model_name(results.run))}",
        _opening(results),
        _kinds_table(results),
        "\n".join(stands_out),
        _reading(results),
        _code(command(results.run)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _reading(results: Results) -> str:
    """Say what alpha means here, and whether layers compare."""
    run = sort_run(results)
    apart = run.not_comparable
    alike = "All layers share one window, so their alphas compare across shapes."
    if apart:
        alike = f"{plural(len(apart), 'layer')} had another window and stand in no line above."
    elif len({frozenset((x.window_rows, x.window_cols)) for x in run.ranked}) > 1:
        alike = "Layers have windows of their own size: alphas of unlike shapes do not compare."
    meaning = _sentence(results.run.spec.cutoff.meaning)
    return f"*How to read it*: {meaning} No data, loss or accuracy took part. {alike}"


def _opening(results: Results) -> str:
    """Say how many layers were measured, by what settings, and what alphas there are."""
    run = sort_run(results)
    settings = ", ".join(f"{word} {value}" for word, value in spec_line(results.run))
    text = f"{len(run.ok):,} of {plural(len(results.layers), 'layer')} "
    whole = results.run.spec.window == "whole"
    what = "as whole matrices" if whole else f"in windows as in [FARMS]({PAPER})"
    text += f"measured by spectail {what} ({settings})."
    alphas = np.array([layer.alpha for layer in run.ranked])
    if alphas.size:
        low, high = np.quantile(alphas, [0.25, 0.75])
        text += f" Median alpha **{np.median(alphas):.2f}**, middle half {low:.2f} to {high:.2f}"
        nulls = [layer.alpha_null for layer in run.ranked if math.isfinite(layer.alpha_null)]
        text += f"; a random matrix has {np.median(nulls):.2f}." if nulls else "."
    return text


def _kinds_table(results: Results) -> str:
    """Return alpha by kind of layer: mean, its error, and how many layers look random."""
    run = sort_run(results)
    errors = {mean.kind: mean.error for mean in kind_means(run.ranked, at_least=2)}
    rows = []
    for kind in dict.fromkeys(layer.kind for layer in run.ranked):
        layers = [layer for layer in run.ranked if layer.kind == kind]
        known = [layer for layer in layers if math.isfinite(layer.null_z)]
        alike = sum(abs(layer.null_z) <= CLEAR for layer in known)
        error = errors.get(kind, layers[0].alpha_se)
        rows.append(
            [
                _text(kind),
                f"{len(layers):,}",
                f"{np.mean([layer.alpha for layer in layers]):.3f}",
                f"{error:.3f}" if math.isfinite(error) else "-",
                f"{layers[0].alpha:.3f} to {layers[-1].alpha:.3f}",
                f"{alike:,} of {len(known):,}" if known else "-",
            ]
        )
    if not rows:
        return ""
    head = ["kind of layer", "layers", "mean alpha", "± error", "range", "look random"]
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table; numbers are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sentence(text: str) -> str:
    """Begin a text with a capital; names stay between backticks, whatever they hold."""
    parts = text.split("`")
    safe = [part if i % 2 else _text(part) for i, part in enumerate(parts)]
    joined = "`".join(safe)
    return joined[:1].upper() + joined[1:]


def _code(text: str) -> str:
    """Return lines as a block of code, in a fence that nothing in them closes."""
    lines = "\n".join(map(visible, text.split("\n")))
    ticks = max(map(len, re.findall("`+", lines)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}\n{lines}\n{fence}"


def _text(text: str) -> str:
    """Escape what Markdown and HTML would take for markup."""
    return re.sub(r"([\\|<>\[\]*_`])", r"\\\1", visible(text))
