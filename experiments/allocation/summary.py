"""From the journals to the tables and the picture of ``docs/allocation-results.md``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.allocation.rules import (
    ACTIVATIONS,
    ALPHA,
    DEPTH,
    DEPTH_KIND,
    FIXED,
    READS_NO_WEIGHTS,
    RULES,
)
from experiments.allocation.steps import Settings, finalists, scores, selected_by, test_key
from experiments.common import markdown_table, mean_and_spread
from experiments.drawing import COLOURS, QUIET, panels, save
from spectail.models.naming.blocks import unit_of
from spectail.results.depth import rank_correlation

CHOICE = ("eps", "sparsity")
"""What a tested row holds beside a score per test text; tables show the scores' geometric mean."""
NAMES = {
    "smollm2": "SmolLM2-135M",
    "gemma": "Gemma-3-270M",
    "minilm": "MiniLM",
    "antiberty": "AntiBERTy",
}


def tables(journals: Mapping[str, Mapping[str, Any]], settings: Settings) -> dict[str, str]:
    """Markdown by the name of its place on the page."""
    return {
        "answer": _answer(journals, settings),
        "tested": _tested(journals, settings),
        "selection": _selection(journals, settings),
        "labels": _labels(journals, settings),
        "depth": _with_depth(journals),
    }


def results(journals: Mapping[str, Mapping[str, Any]], settings: Settings) -> dict[str, Any]:
    """The numbers behind the tables: test perplexities by target, rule and draw."""
    return {
        model: {
            name: {
                rule: {"eps": _eps(done, target, rule), "draws": found}
                for rule in RULES
                if (found := test_draws(done, settings, target, rule))
            }
            for name, target in _targets(settings)
        }
        for model, done in journals.items()
    }


def test_draws(
    done: Mapping[str, Any], settings: Settings, target: tuple[str, float], rule: str
) -> list[float]:
    """The test perplexity of every draw that is done: the geometric mean over the texts."""
    found = []
    for draw in range(settings.draws):
        row = done.get(test_key(target, rule, draw))
        if row is not None:
            by_text = [math.inf if row[k] is None else row[k] for k in row if k not in CHOICE]
            found.append(math.exp(fmean(map(math.log, by_text))))
    return found


def best_control(
    done: Mapping[str, Any],
    settings: Settings,
    target: tuple[str, float],
    forms: Iterable[str] = DEPTH,
) -> str:
    """The form of depth that selection text chose."""
    best = {
        rule: min(found.values(), default=math.inf)
        for rule in forms
        for found in [scores(done, settings, selected_by(target), rule)]
    }
    return min(best, key=lambda rule: best[rule])


def _targets(settings: Settings) -> Iterator[tuple[str, tuple[str, float]]]:
    for target in (*settings.targets, *settings.harder_targets):
        yield f"{target[0]} {target[1]:g}", target


def _selected(
    done: Mapping[str, Any],
    settings: Settings,
    target: tuple[str, float],
    rules: Sequence[str] = RULES,
) -> bool:
    """Whether these rules were scored on selection text for this target."""
    by = selected_by(target)
    return all(
        len(scores(done, settings, by, rule)) == len(settings.candidates(rule)) for rule in rules
    )


def _is_compared(done: Mapping[str, Any], settings: Settings, target: tuple[str, float]) -> bool:
    """Whether all that is compared on selection text is there: at ``harder`` the finalists."""
    if target in settings.targets:
        return _selected(done, settings, target)
    easier = (target[0], dict(settings.targets)[target[0]])
    return _selected(done, settings, easier) and _selected(
        done, settings, target, finalists(done, settings, target)
    )


def _eps(done: Mapping[str, Any], target: tuple[str, float], rule: str) -> float | None:
    row = done.get(test_key(target, rule, 0))
    return None if row is None else row["eps"]


def _columns(
    journals: Mapping[str, Mapping[str, Any]], settings: Settings
) -> list[tuple[str, Mapping[str, Any], tuple[str, float]]]:
    """The pairs of model and target that were scored, with their headings."""
    return [
        (f"{NAMES.get(model, model)}, {name}", done, target)
        for model, done in journals.items()
        for name, target in _targets(settings)
        if _is_compared(done, settings, target)
    ]


def _answer(journals: Mapping[str, Mapping[str, Any]], settings: Settings) -> str:
    """Of every target: the best control by depth, the best rule by alpha, and the best of all."""
    rows = []
    for heading, done, target in _columns(journals, settings):
        control = best_control(done, settings, target)
        base = test_draws(done, settings, target, control)
        if len(base) < settings.draws:
            continue
        row = [heading, f"{control} {fmean(base):.4g}"]
        tested = finalists(done, settings, target)
        others = (*ALPHA, *ACTIVATIONS, *FIXED, *READS_NO_WEIGHTS)
        groups: dict[str, Sequence[str]] = {
            "depth and kinds": [best_control(done, settings, target, DEPTH_KIND)],
            "as they stand": tuple(ALPHA),
            "activations": (*ACTIVATIONS, *FIXED),
            "attempts": [rule for rule in tested if rule not in others],
        }
        for rules in groups.values():
            row.append(_best_of(done, settings, target, rules, base))
        rows.append(row)
    header = ["", "best by depth", "best by depth and kind", "best by alpha"]
    header += ["best of OWL, DLP, DSA, Global, LAMP", "best attempt"]
    return markdown_table(header, rows)


def _best_of(
    done: Mapping[str, Any],
    settings: Settings,
    target: tuple[str, float],
    rules: Sequence[str],
    base: Sequence[float],
) -> str:
    """The rule of the lowest mean, and its draws over those of the control."""
    found = {rule: test_draws(done, settings, target, rule) for rule in rules}
    complete = {rule: draws for rule, draws in found.items() if len(draws) == settings.draws}
    if not complete:
        return "-"
    rule = min(complete, key=lambda rule: fmean(complete[rule]))
    return f"{rule} {fmean(complete[rule]):.4g}, {_ratio(complete[rule], base)}"


def _ratio(draws: Sequence[float], base: Sequence[float]) -> str:
    """Perplexity over the control's, draw by draw: mean (least to largest)."""
    found = [a / b for a, b in zip(draws, base, strict=False)]
    mean = math.exp(fmean(map(math.log, found)))
    return f"x {mean:.3f} ({min(found):.3f} to {max(found):.3f})"


def _tested(journals: Mapping[str, Mapping[str, Any]], settings: Settings) -> str:
    """Test perplexities of all rules that were tested."""
    columns = [
        column
        for column in _columns(journals, settings)
        if len(test_draws(column[1], settings, column[2], "uniform")) == settings.draws
    ]

    def cell(done: Mapping[str, Any], target: tuple[str, float], rule: str) -> str:
        draws = test_draws(done, settings, target, rule)
        if not draws:
            return ""
        eps = _eps(done, target, rule)
        digits = 0 if fmean(draws) >= 100 else 1 if fmean(draws) >= 1 else 4
        return mean_and_spread(draws, digits) + ("" if eps is None else f" ({eps:g})")

    rows = [
        [_label(rule), *(cell(done, target, rule) for _, done, target in columns)] for rule in RULES
    ]
    return markdown_table(
        ["rule", *(heading for heading, _, _ in columns)], [row for row in rows if any(row[1:])]
    )


def _selection(journals: Mapping[str, Mapping[str, Any]], settings: Settings) -> str:
    """The lowest perplexity of every rule on selection text, with its eps."""
    columns = [c for c in _columns(journals, settings) if c[2][0] != "sparsegpt"]

    def cell(done: Mapping[str, Any], target: tuple[str, float], rule: str) -> str:
        found = scores(done, settings, target, rule)
        if not found:
            return ""
        eps = min(found, key=lambda e: found[e])
        return f"{found[eps]:.4g}" + ("" if eps is None else f" ({eps:g})")

    return markdown_table(
        ["rule", *(heading for heading, _, _ in columns)],
        [[_label(r), *(cell(done, target, r) for _, done, target in columns)] for r in RULES],
    )


def _labels(journals: Mapping[str, Mapping[str, Any]], settings: Settings) -> str:
    """What choosing eps by NeuroAL's distance costs over choosing it by perplexity."""
    rows = []
    for heading, done, target in _columns(journals, settings):
        if target[0] == "sparsegpt":
            continue
        costs = []
        for rule in RULES:
            by_text = scores(done, settings, target, rule)
            if len(by_text) > 1:
                blind = scores(done, settings, target, rule, by=1)
                pick = min(blind, key=lambda e: blind[e])
                costs.append(by_text[pick] / min(by_text.values()))
        if not costs:
            continue
        same = sum(cost == 1 for cost in costs)
        mean = math.exp(fmean(map(math.log, costs)))
        rows.append([heading, f"{same} of {len(costs)}", f"{mean:.3f}", f"{max(costs):.3g}"])
    return markdown_table(["", "same eps", "perplexity over the best, mean", "worst"], rows)


def _with_depth(journals: Mapping[str, Mapping[str, Any]]) -> str:
    """The rank correlation of block alphas with depth, by model and cutoff."""
    rows = []
    for model, done in journals.items():
        for spec in ("whole, peak", "published windows", "median", "tail"):
            if f"alphas | {spec}" not in done:
                continue
            alphas: dict[str, list[float]] = {}
            for name, alpha in done[f"alphas | {spec}"].items():
                alphas.setdefault(unit_of(name) or name, []).append(alpha)
            means = [fmean(values) for values in alphas.values()]
            found = rank_correlation(means, range(len(means)))
            rows.append([NAMES.get(model, model), spec, f"{found.rho:.2f}" if found else "-"])
    return markdown_table(["model", "alpha", "rank correlation with depth"], rows)


def _label(rule: str) -> str:
    """A rule's name; those that read no weights are in italics."""
    return f"*{rule}*" if rule in READS_NO_WEIGHTS else rule


TICKS = (
    (10, (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)),
    (2, (0.5, 0.7, 1, 1.5, 2, 3, 5, 10)),
    (0, (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5)),
)
"""Ticks of a picture by how many times the smallest ratio its largest one is, widest first."""


def draw(journals: Mapping[str, Mapping[str, Any]], settings: Settings, path: Path) -> None:
    """Draw the test perplexity of every rule over that of the best rule by depth."""
    columns = [
        c
        for c in _columns(journals, settings)
        if len(test_draws(c[1], settings, c[2], best_control(c[1], settings, c[2])))
        == settings.draws
    ]
    if not columns:
        return
    rows = -(-len(columns) // 3)
    fig, axes = panels(rows, min(3, len(columns)), size=(3.8 * min(3, len(columns)), 4.2 * rows))
    for axis, (heading, done, target) in zip(axes, columns, strict=False):
        base = test_draws(done, settings, target, best_control(done, settings, target))
        found = {r: test_draws(done, settings, target, r) for r in RULES}
        ratios = {
            rule: [a / b for a, b in zip(draws, base, strict=True)]
            for rule, draws in found.items()
            if len(draws) == settings.draws
        }
        order = sorted(ratios, key=lambda rule: -fmean(ratios[rule]))
        for place, rule in enumerate(order):
            colour = QUIET if rule in READS_NO_WEIGHTS else COLOURS[0 if _by_alpha(rule) else 1]
            axis.plot(ratios[rule], [place] * settings.draws, "-", color=colour, linewidth=1)
            axis.plot(fmean(ratios[rule]), place, "o", color=colour, markersize=5)
        axis.axvline(1, color=QUIET, linewidth=1, linestyle="--")
        axis.set_yticks(range(len(order)), order)
        axis.set_xscale("log")
        axis.set_xticks([], minor=True)
        low, high = min(map(min, ratios.values())), max(map(max, ratios.values()))
        spread = next(ticks for least, ticks in TICKS if high >= least * low)
        ticks = [x for x in spread if low / 1.1 < x < high * 1.1]
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
        axis.set_title(heading)
    for axis in axes[len(columns) :]:
        axis.set_visible(False)
    fig.supxlabel("perplexity over the best rule by depth", fontsize=9)
    save(fig, path)


def _by_alpha(rule: str) -> bool:
    return rule in ALPHA or any(word in rule for word in ("tail", "FARMS"))
