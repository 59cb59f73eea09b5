"""From the steps to numbers: perplexity per allocation, and ratios to the baseline.

Perplexities have their spread over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from experiments.pruning.allocations import BASELINE, MAIN, PARTS
from experiments.pruning.steps import Settings, finalists, selections

SIX = {
    "whole, peak": "AlphaPruning",
    "windows, peak": "windows, peak",
    "whole, median": "whole, median",
    "windows, median": "FARMS default",
    "whole, top 10 %": "whole, top 10 %",
    "windows, top 10 %": "windows, top 10 %",
}
"""Windows or whole matrices, by cutoff."""


def summarise(
    done: Mapping[str, Any], settings: Settings, sources: Sequence[str]
) -> dict[str, Any]:
    """Everything that tables and plot show: of parts that are complete, with the seeds that are."""
    tests: dict[str, dict[str, Any]] = {}
    for target in [f"{method} {sparsity:g}" for method, sparsity in settings.targets]:
        for names in (MAIN, *([name] for name in finalists(done, settings)), PARTS):
            keys = {name: f"test | {target} | {name}" for name in names}
            if seeds := complete_seeds(done, [*keys.values(), "dense"], settings.seeds):
                found = {name: _tested(done, key, seeds, sources) for name, key in keys.items()}
                tests.setdefault(target, {}).update(found)
    for found in tests.values():
        against_baseline(found)
    seeds = complete_seeds(done, ["dense"], settings.seeds)
    dense = _tested(done, "dense", seeds, sources) if seeds else {}
    return {
        "dense": dense,
        "tests": tests,
        "selection": selections(done, settings),
        "finalists": finalists(done, settings),
    }


def complete_seeds(done: Mapping[str, Any], keys: Sequence[str], seeds: int) -> int:
    """How many seeds, from the first on, have every one of these steps."""
    return next(
        (seed for seed in range(seeds) if any(f"{key} | {seed}" not in done for key in keys)), seeds
    )


def against_baseline(found: dict[str, dict[str, Any]]) -> None:
    """Add ``ratio`` to every allocation: its perplexity over the baseline's.

    Seed by seed, with mean and spread.
    """
    for row in found.values():
        logs = [
            math.log(a / b) for a, b in zip(row["seeds"], found[BASELINE]["seeds"], strict=False)
        ]
        row["ratio"] = math.exp(fmean(logs))
        row["ratio_low"], row["ratio_high"] = math.exp(min(logs)), math.exp(max(logs))


def _tested(
    done: Mapping[str, Any], key: str, seeds: int, sources: Sequence[str]
) -> dict[str, Any]:
    """Perplexities by source and seed, and their geometric mean over sources.

    The mean has its spread over seeds.
    """
    rows = [done[f"{key} | {seed}"] for seed in range(seeds)]
    by_source = {source: [_number(row[source]) for row in rows] for source in sources}
    means = [
        math.exp(fmean(math.log(by_source[source][seed]) for source in sources))
        for seed in range(seeds)
    ]
    mean = math.exp(fmean(map(math.log, means)))
    spread = stdev(map(math.log, means)) * mean if seeds > 1 else math.nan
    settings = {name: rows[0][name] for name in ("eps", "sparsity") if name in rows[0]}
    return settings | {"sources": by_source, "seeds": means, "mean": mean, "spread": spread}


def _number(value: float | None) -> float:
    return math.inf if value is None else value
