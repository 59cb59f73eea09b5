"""From the steps to numbers and tables: what is complete so far, and only that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any

import torch

from experiments.bits.rules import RULES, WIDTHS, real_bits
from experiments.bits.steps import (
    Settings,
    chosen_candidate,
    layers_of,
    number,
    select_key,
    test_key,
)
from experiments.common import markdown_table
from spectail.core.quantisers import Integers, relative_error

Found = Mapping[str, Any]


def summarise(done: Found, settings: Settings) -> dict[str, Any]:
    """Selection and test perplexity by size and rule.

    A rule's draws are the first that are done.
    """
    if "layers" not in done:
        return {}
    budgets = {
        str(budget): {
            rule: _row(done, budget, rule, settings.draws)
            for rule in RULES
            if all(select_key(budget, rule, c) in done for c in RULES[rule].candidates)
        }
        for budget in settings.budgets
    }
    for rows in budgets.values():
        if "uniform" in rows:
            uniform = rows["uniform"]
            for row in rows.values():
                row["over uniform, selection"] = number(row["selection"]) / number(
                    uniform["selection"]
                )
                row["over uniform"] = _over(row["tests"], uniform["tests"])
    draws = [done[f"dense | {d}"] for d in range(settings.draws) if f"dense | {d}" in done]
    return {
        "dense": {"selection": done.get("dense | selection"), "tests": list(map(_mean, draws))},
        "sizes": budgets,
        "selection": {k: v["perplexity"] for k, v in done.items() if k.startswith("select")},
        "errors": _errors(done),
    }


def tables(models: Mapping[str, Found]) -> dict[str, str]:
    """Markdown by its place on the page."""
    return {
        "results": "\n\n".join(_results(name, found) for name, found in models.items() if found),
        "errors": _error_table(models),
        "rules": markdown_table(
            ["rule", "minimises the sum of", "candidates"],
            [
                [name, rule.meaning, ", ".join(f"{c:g}" for c in rule.candidates)]
                for name, rule in RULES.items()
            ],
        ),
    }


def _row(done: Found, budget: int, rule: str, draws: int) -> dict[str, Any]:
    keys = [test_key(budget, rule, draw) for draw in range(draws)]
    # Draws count from the first on, so that every rule is compared on the same ones.
    complete = next((i for i, key in enumerate(keys) if key not in done), draws)
    tests = [_mean(done[key]["texts"]) for key in keys[:complete]]
    candidate = chosen_candidate(done, budget, rule)
    chosen = done[select_key(budget, rule, candidate)]
    layers = layers_of(done)
    widths = dict(zip(layers.names, map(int, chosen["widths"]), strict=True))
    return {
        "candidate": candidate,
        "bits": real_bits(layers, widths),
        "widths": {str(b): chosen["widths"].count(str(b)) for b in WIDTHS},
        "selection": chosen["perplexity"],
        "tests": tests,
    }


def _mean(texts: Mapping[str, float | None]) -> float:
    """Geometric mean over texts."""
    return math.exp(fmean(math.log(number(value)) for value in texts.values()))


def _over(tests: list[float], uniform: list[float]) -> list[float]:
    """Ratios, draw by draw."""
    return [a / b for a, b in zip(tests, uniform, strict=False)]


def _results(model: str, found: Found) -> str:
    sizes: Mapping[str, Mapping[str, Any]] = found["sizes"]
    head = ["rule"]
    for budget in sizes:
        head += [f"{budget} bits: setting", "real bits", "selection", "test", "over uniform"]
    rows = [
        [rule, *(cell for budget in sizes for cell in _cells(sizes[budget].get(rule)))]
        for rule in RULES
        if any(rule in rows for rows in sizes.values())
    ]
    dense = found["dense"]
    text = f"**{model}**, perplexity; dense: selection {_number(dense['selection'])}"
    if dense["tests"]:
        text += f", test {fmean(dense['tests']):.1f}"
    return f"{text}.\n\n{markdown_table(head, rows)}" if rows else f"{text}. Not run yet."


def _cells(row: Mapping[str, Any] | None) -> list[str]:
    if row is None:
        return ["", "", "", "not run yet", ""]
    tests, ratios = row["tests"], row.get("over uniform", [])
    spread = f" ± {stdev(tests):.3g}" if len(tests) > 1 else ""
    shown = f"{fmean(tests):.4g}{spread} ({len(tests)})" if tests else "not run yet"
    return [
        f"{row['candidate']:g}",
        f"{row['bits']:.3f}",
        _number(row["selection"]),
        shown,
        f"{fmean(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" if ratios else "",
    ]


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _errors(done: Found) -> dict[str, Any]:
    """Mean t^2 of each width, weighted by size, and its spread over layers."""
    layers = layers_of(done)
    share = layers.numel / layers.numel.sum()
    return {
        str(bits): {
            "mean": float(share @ layers.errors[:, i]),
            "least": float(layers.errors[:, i].min()),
            "most": float(layers.errors[:, i].max()),
            "of 4^-b": float(share @ layers.errors[:, i] / 4.0**-bits),
        }
        for i, bits in enumerate(WIDTHS)
    }


def _error_table(models: Mapping[str, Found]) -> str:
    rows = []
    for bits in WIDTHS:
        row = [str(bits)]
        for found in models.values():
            of = found["errors"][str(bits)]
            row += [
                f"{of['mean']:.3g}",
                f"{of['least']:.3g} to {of['most']:.3g}",
                f"{of['of 4^-b']:.2f}",
            ]
        rows.append([*row, f"{_gaussian(bits):.3g}"])
    head = ["bits"]
    for name in models:
        head += [f"{name}: mean t^2", "over layers", "over 4^-b"]
    return markdown_table([*head, "Gaussian weights"], rows)


def _gaussian(bits: int) -> float:
    """t^2 of a matrix of independent Gaussian weights: no grid is left in it to be found again."""
    draw = torch.Generator().manual_seed(0)
    return relative_error(Integers(bits), torch.randn(512, 1024, generator=draw))
