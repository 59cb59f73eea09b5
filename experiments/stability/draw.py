"""The picture and the tables of the docs page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from experiments.common import markdown_table
from experiments.drawing import COLOURS, INK, MARKERS, QUIET, panels, save
from experiments.stability.measure import CUTOFFS, HALVES
from experiments.stability.summary import RULES, middle, worst_placement

TARGET = 0.98
PAIRED = ("median", "top:0.75", "top:0.25", "top:0.1", "ks", "peak")
"""Cutoffs that the table of placements compares."""
NAMED = ("median", "top:0.75", "top:0.25", "top:0.1")
"""Cutoffs that the table of windows compares."""


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Four panels, a row per cutoff, a mark per model, a bar at the median over models."""
    fig, axes = panels(1, 4, size=(11, 4.2), share_y=True)
    columns = _columns(summary)
    shown = [column[cutoff] for column in columns.values() for cutoff in column]
    names = [name for name in summary["rules"] if any(row[name] is not None for row in shown)]
    for ax, (title, values) in zip(axes, columns.items(), strict=True):
        _panel(ax, names, values, correlation="signal" not in title)
        ax.set_title(title)
    axes[0].set_yticks(range(len(CUTOFFS)), list(CUTOFFS))
    axes[0].invert_yaxis()
    handles, labels = axes[2].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(5, max(1, len(labels))))
    save(fig, path)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The tables by name: cutoffs, pairs of placements, windows, models."""
    summary = results["summary"]
    return {
        "cutoffs": _cutoff_table(summary),
        "pairs": _pair_table(summary),
        "windows": _window_table(summary),
        "windows by model": _window_model_table(summary),
        "models": _model_table(results),
        "missing": "\n".join(
            f"- not installed, left out: {line}" for line in results["not installed"]
        )
        or "Every model of the catalogue was measured.",
    }


def _columns(summary: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Panel -> cutoff -> model -> value, at each model's common window."""
    rules, pairs = summary["rules"], summary["window pairs"]

    def gather(value: Any) -> dict[str, dict[str, float | None]]:
        return {cutoff: {name: value(name, cutoff) for name in rules} for cutoff in CUTOFFS}

    return {
        "other placement": gather(
            lambda name, cutoff: worst_placement(rules[name]["common"][cutoff])
        ),
        "other half of the windows": gather(
            lambda name, cutoff: rules[name]["common"][cutoff]["halves"]
        ),
        "half the window": gather(lambda name, cutoff: pairs[name][cutoff].get("common | half")),
        "signal to noise": gather(lambda name, cutoff: rules[name]["common"][cutoff]["signal"]),
    }


def _panel(
    ax: Axes,
    names: list[str],
    values: Mapping[str, Mapping[str, float | None]],
    *,
    correlation: bool,
) -> None:
    shown = [name for name in names if any(row[name] is not None for row in values.values())]
    for i, name in enumerate(names):
        offset = (shown.index(name) - (len(shown) - 1) / 2) * 0.08 if name in shown else 0
        points = [
            (row[name], y + offset)
            for y, row in enumerate(values.values())
            if row[name] is not None
        ]
        xs, ys = zip(*points, strict=True) if points else ((), ())
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        ax.plot(xs, ys, linestyle="", markersize=4.5, label=name, **style)
    for y, row in enumerate(values.values()):
        centre = middle(list(row.values()))
        if centre is not None:
            ax.plot([centre, centre], [y - 0.38, y + 0.38], color=INK, linewidth=1.6)
    if correlation:
        ax.axvline(TARGET, color=QUIET, linestyle=":", linewidth=1.2)
        ax.set_xlabel("rank correlation of alphas")
        ax.set_xlim(max(-0.3, ax.get_xlim()[0]), 1.02)
    else:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("spread over layers / standard error")


def _cutoff_table(summary: Mapping[str, Any]) -> str:
    columns, rules = list(_columns(summary).values()), summary["rules"]
    rows = []
    for cutoff in CUTOFFS:
        cells = [
            _over_models(values[cutoff], digits=1 if i == 3 else 3)
            for i, values in enumerate(columns)
        ]
        seconds = middle([rule["common"][cutoff]["seconds"] for rule in rules.values()])
        shift = middle([rule["common"][cutoff]["shift"] for rule in rules.values()])
        alike = _over_models(
            {name: rule["common"][cutoff]["as median"] for name, rule in rules.items()}, digits=3
        )
        pairs = [
            pair
            for rule in rules.values()
            for pair in rule["common"][cutoff]["placements"].values()
        ]
        reached = f"{sum(pair >= TARGET for pair in pairs)} of {len(pairs)}"
        rows.append(
            [
                cutoff,
                reached,
                *cells,
                alike,
                _number(shift and 100 * shift, 1),
                _number(seconds and 1000 * seconds, 2),
            ]
        )
    header = [
        "cutoff",
        f"pairs at {TARGET}",
        "other placement",
        "other half of the windows",
        "half the window",
        "signal to noise",
        "order as median's",
        "shift, %",
        "ms a fit",
    ]
    return markdown_table(header, rows)


def _pair_table(summary: Mapping[str, Any]) -> str:
    """Rank correlation between each two placements at the common window, over models."""
    rules = [rules["common"] for rules in summary["rules"].values()]
    pairs = dict.fromkeys(pair for rule in rules for pair in rule["median"]["placements"])

    def cell(pair: str, cutoff: str) -> str:
        return _over_models(
            {str(i): rule[cutoff]["placements"].get(pair) for i, rule in enumerate(rules)}, digits=3
        )

    rows = [
        [pair.replace(" | ", " and "), *(cell(pair, cutoff) for cutoff in PAIRED)] for pair in pairs
    ]
    return markdown_table(["placements", *PAIRED], rows)


def _window_table(summary: Mapping[str, Any]) -> str:
    rows = []
    for cutoff in NAMED:
        for rule in RULES:
            found = {
                name: rules[rule][cutoff]
                for name, rules in summary["rules"].items()
                if rule in rules
            }
            rows.append(
                [
                    f"{cutoff}, {rule}",
                    _over_models(
                        {name: worst_placement(values) for name, values in found.items()}, digits=3
                    ),
                    _over_models(
                        {name: values["halves"] for name, values in found.items()}, digits=3
                    ),
                    _over_models(
                        {name: values["signal"] for name, values in found.items()}, digits=1
                    ),
                ]
            )
    return markdown_table(
        ["cutoff, window", "other placement", "other half of the windows", "signal to noise"], rows
    )


def _model_table(results: Mapping[str, Any]) -> str:
    summary = results["summary"]
    rows = []
    for name, rules in summary["rules"].items():
        values = rules["common"]["median"]
        rows.append(
            [
                name,
                str(values["layers"]),
                str(_with_room(results["models"][name])),
                str(results["models"][name]["common"]),
                f"{_number(values['least'], 2)} to {_number(values['greatest'], 2)}",
                _number(values["se"], 4),
                _number(worst_placement(values), 3),
                _number(values["halves"], 3),
                _number(summary["window pairs"][name]["median"].get("common | half"), 3),
                _number(values["signal"], 1),
            ]
        )
    header = [
        "model",
        "layers",
        "with room",
        "window",
        "alpha",
        "usual error",
        "other placement",
        "other half",
        "half the window",
    ]
    return markdown_table([*header, "signal to noise"], rows)


def _window_model_table(summary: Mapping[str, Any]) -> str:
    """The median's worst rank correlation between placements, and its signal to noise.

    By model and window.
    """
    rows = [
        [
            name,
            *(
                (
                    f"{_number(worst_placement(rules[rule]['median']), 3)}, "
                    f"{_number(rules[rule]['median']['signal'], 1)}"
                )
                if rule in rules
                else "–"
                for rule in RULES
            ),
        ]
        for name, rules in summary["rules"].items()
    ]
    return markdown_table(["model", *RULES], rows)


def _with_room(model: Mapping[str, Any]) -> int:
    """How many layers can hold the common window in more than the places that tiles take."""
    alphas = model["sides"][str(model["common"])]["alpha"]
    return sum(
        any(
            alphas[name]["median"][i] is not None
            for name in alphas
            if name not in ("tile", *HALVES)
        )
        for i in range(len(model["layers"]))
    )


def _over_models(values: Mapping[str, float | None], *, digits: int) -> str:
    """Median over models and, in brackets, the worst; a dash where no model has a number."""
    known = [value for value in values.values() if value is not None]
    return f"{_number(middle(known), digits)} ({_number(min(known), digits)})" if known else "–"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"
