"""Tables and the picture of the docs page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common import markdown_table
from experiments.drawing import COLOURS, QUIET, panels, save
from experiments.pruning.allocations import BASELINE, MAIN, OTHER_GRID
from experiments.pruning.steps import best, over_default
from experiments.pruning.summary import SIX


def tables(summary: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by the name of its place on the page."""
    tests, selection = summary["tests"], summary["selection"]
    targets = list(tests)
    six = [target for target in targets if all(name in tests[target] for name in SIX.values())]
    sources = list(summary["dense"]["sources"])
    names = compared_in(summary)
    return {
        "comparison": markdown_table(
            ["allocation", *targets],
            [[name, *(_cell(tests[t].get(name)) for t in targets)] for name in names],
        ),
        "ratios": markdown_table(
            [f"over {BASELINE}", *targets],
            [[name, *(_ratio(tests[t].get(name)) for t in targets)] for name in names],
        ),
        "sources": markdown_table(
            ["allocation", *(f"{t}, {s}" for t in targets for s in sources)],
            [
                [
                    "dense",
                    *(_mean(summary["dense"]["sources"][s]) for _ in targets for s in sources),
                ],
                *(
                    [name, *(_source(tests[t].get(name), s) for t in targets for s in sources)]
                    for name in names
                ),
            ],
        ),
        "parts": markdown_table(
            [
                "measured on, cutoff",
                *(f"{t}, selection" for t in selection),
                *(f"{t}, test ratio" for t in six),
            ],
            [
                [
                    shown,
                    *(_chosen(selection[t][name]) for t in selection),
                    *(_ratio(tests[t][name]) for t in six),
                ]
                for shown, name in SIX.items()
                if all(name in found for found in selection.values())
            ],
        ),
        "variants": markdown_table(
            ["variant, over FARMS default", *selection],
            [
                [name, *(f"{row[t]:.3f}" for t in selection)]
                for name, row in over_default(selection).items()
            ],
        ),
    }


def compared_in(summary: Mapping[str, Any]) -> list[str]:
    """The allocations of the comparison.

    Also the second grid and the finalists where they were tested.
    """
    found = [
        name
        for name in (OTHER_GRID, *summary["finalists"])
        if any(name in t for t in summary["tests"].values())
    ]
    return [*MAIN, *dict.fromkeys(found)]


def draw(summary: Mapping[str, Any], path: Path) -> None:
    """Perplexity over the baseline's, a panel per method, a point per seed."""
    tests = summary["tests"]
    names = compared_in(summary)
    fig, axes = panels(1, len(tests), size=(3.2 * len(tests) + 2.4, 3.4), share_y=True)
    for axis, (target, found) in zip(axes, tests.items(), strict=True):
        base = found[BASELINE]["seeds"]
        for i, name in enumerate(names):
            if name not in found:
                continue
            ratios = [a / b for a, b in zip(found[name]["seeds"], base, strict=False)]
            axis.plot(ratios, [i] * len(ratios), "o", color=COLOURS[i], alpha=0.6, markersize=5)
            axis.plot(
                [found[name]["ratio"]] * 2, [i - 0.3, i + 0.3], color=COLOURS[i], linewidth=2.4
            )
        axis.axvline(1.0, color=QUIET, linewidth=0.8, linestyle=":")
        axis.set_title(target)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    fig.supxlabel(
        f"test perplexity over that of {BASELINE} (a point per seed, bar: mean)", fontsize=9
    )
    save(fig, path)


def _chosen(scores: Mapping[str, float | None]) -> str:
    """The least perplexity on selection text, and its eps."""
    eps = next(
        eps for eps, score in scores.items() if score == best(scores) or best(scores) == math.inf
    )
    return f"{_short(best(scores))} ({eps})"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not tested"
    setting = next((f" ({row[key]:g})" for key in ("eps", "gamma") if row.get(key) is not None), "")
    spread = (
        f" ± {_short(row['spread'])}"
        if row["spread"] is not None and math.isfinite(row["spread"])
        else ""
    )
    return f"{_short(row['mean'])}{spread}{setting}"


def _ratio(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not tested"
    limits = (
        f" ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})" if len(row["seeds"]) > 1 else ""
    )
    return f"{row['ratio']:.3f}{limits}"


def _source(row: Mapping[str, Any] | None, source: str) -> str:
    return "not tested" if row is None else _mean(row["sources"][source])


def _mean(values: list[float]) -> str:
    return _short(math.exp(sum(map(math.log, values)) / len(values)))


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
