"""From the steps to numbers: perplexity per allocation with its spread over seeds, and ratios to the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from experiments.pruning.allocations import BASELINE, MAIN, PARTS, RULES, VARIANTS
from experiments.pruning.steps import BITS, Settings, bits_key, selection_key

SIX = {
    "whole, peak": "AlphaPruning",
    "windows, peak": "windows, peak",
    "whole, median": "whole, median",
    "windows, median": "FARMS default",
    "whole, top 10 %": "whole, top 10 %",
    "windows, top 10 %": "windows, top 10 %",
}
"""Windows or whole matrices, by cutoff."""


def summarise(done: Mapping[str, Any], settings: Settings, sources: Sequence[str]) -> dict[str, Any]:
    """Everything that tables and plot show."""
    tests = {
        f"{method} {sparsity:g}": {
            name: _tested(done, f"test | {method} {sparsity:g} | {name}", settings.seeds, sources)
            for name in MAIN | PARTS
        }
        for method, sparsity in settings.targets
    }
    for found in tests.values():
        against_baseline(found)
    selections = {
        f"{method} {sparsity:g}": {
            name: {
                "" if eps is None else f"{eps:g}": done[selection_key(method, sparsity, name, eps)]
                for eps in (settings.eps_of(method) if name != "uniform" else (None,))
            }
            for name in RULES
        }
        for method, sparsity in settings.targets
        if method != "sparsegpt"
    }
    bits = {
        f"{budget:g}": {
            name: _tested(done, f"test bits | {budget:g} | {name}", settings.seeds, sources)
            | {
                "selection": {
                    str(gamma): done[bits_key(budget, name, gamma)] for gamma in (chosen[1] if chosen else (None,))
                }
            }
            for name, chosen in BITS.items()
        }
        for budget in settings.bits
    }
    dense = _tested(done, "dense", settings.seeds, sources)
    return {"dense": dense, "tests": tests, "selection": selections, "bits": bits}


def against_baseline(found: dict[str, dict[str, Any]]) -> None:
    """Add ``ratio`` to every allocation: its perplexity over the baseline's, seed by seed, with mean and spread."""
    base = found[BASELINE]["seeds"]
    for row in found.values():
        logs = [math.log(a / b) for a, b in zip(row["seeds"], base, strict=True)]
        row["ratio"] = math.exp(fmean(logs))
        row["ratio_low"], row["ratio_high"] = math.exp(min(logs)), math.exp(max(logs))


def best(scores: Mapping[str, float | None]) -> float:
    """The least perplexity; a perplexity beyond all numbers is kept as None."""
    return min(math.inf if score is None else score for score in scores.values())


def variants(selection: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Best selection perplexity of each variant over that of the default, by method."""
    names = (*VARIANTS, *PARTS)
    return {
        name: {target: best(found[name]) / best(found["FARMS default"]) for target, found in selection.items()}
        for name in names
    }


def _tested(done: Mapping[str, Any], key: str, seeds: int, sources: Sequence[str]) -> dict[str, Any]:
    """Perplexities by source and seed, and their geometric mean over sources with its spread over seeds."""
    rows = [done[f"{key} | {seed}"] for seed in range(seeds)]
    by_source = {source: [_number(row[source]) for row in rows] for source in sources}
    means = [math.exp(fmean(math.log(by_source[source][seed]) for source in sources)) for seed in range(seeds)]
    mean = math.exp(fmean(map(math.log, means)))
    spread = stdev(map(math.log, means)) * mean if seeds > 1 else math.nan
    settings = {name: rows[0][name] for name in ("eps", "gamma", "sparsity", "bits") if name in rows[0]}
    return settings | {"sources": by_source, "seeds": means, "mean": mean, "spread": spread}


def _number(value: float | None) -> float:
    return math.inf if value is None else value
