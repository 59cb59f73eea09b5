"""``python -m experiments.allocation.profiles``: rules that need no weights, and searched ratios.

EvoPress searched ratios per matrix for four models of 7 to 8 billion weights. What rank correlation
with them, block by block, has a rule that looks at depth alone, and what have published alphas?
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from experiments.common import environment, markdown_table, save_json
from spectail.allocation.depth import FORMS, depth_scores
from spectail.allocation.scores import standardized, with_kept
from spectail.results.depth import rank_correlation

HERE = Path(__file__).parent
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HIDDEN = 4096
SIZES = {"Llama-2-7b-hf": (HIDDEN, 11008)}
"""Rows of k and v, and of the MLP's inner layers; of the other models 1024 and 14336."""
ALPHA_OF = {"Llama-2-7b-hf": "llama2-7b"}
"""The model whose alphas are published, by both names."""
BLOCKS = [f"layers.{i}" for i in range(32)]


def rows_of(name: str) -> list[dict[str, str]]:
    """The rows of a published file."""
    data = gzip.decompress((HERE / "profiles" / f"{name}.csv.gz").read_bytes())
    return list(csv.DictReader(io.StringIO(data.decode())))


def numel(model: str, kind: str) -> int:
    """The number of weights of a matrix."""
    narrow, inner = SIZES.get(model, (1024, 14336))
    out = {"k_proj": narrow, "v_proj": narrow, "q_proj": HIDDEN, "o_proj": HIDDEN}
    return HIDDEN * out.get(kind, inner)


def searched(model: str, percent: int) -> dict[tuple[int, str], float]:
    """The searched ratio of every matrix, by block and kind."""
    sparsity = percent / 100
    step = math.floor(0.5 * min(sparsity, 1 - sparsity) / 8 * HIDDEN**2)
    found = {}
    for row in rows_of("evopress_levels"):
        if row["model"] == model and int(row["sparsity_percent"]) == percent:
            parts = row["layer"].split(".")
            kind = parts[-1]
            ratio = sparsity + int(row["level"]) * step / numel(model, kind)
            found[int(parts[2]), kind] = ratio
    return found


def by_block(model: str, ratios: Mapping[tuple[int, str], float]) -> list[float]:
    """The mean ratio of every block, weighted by numbers of weights."""
    sizes = np.array([numel(model, kind) for kind in KINDS], dtype=float)
    return [
        float(np.average([ratios[block, kind] for kind in KINDS], weights=sizes))
        for block in range(32)
    ]


def scores_for(model: str) -> dict[str, list[float]]:
    """What every rule that needs no weights would prune by; more where it is higher."""
    found = {f"depth: {form}": [float(x) for x in depth_scores(BLOCKS, form)] for form in FORMS}
    keep = {
        int(row["block"]): float(row["keep_ratio_at_70_percent"])
        for row in rows_of("dlp_keep")
        if row["model"] == model
    }
    if keep:
        found["DLP as published"] = [-keep[block] for block in range(32)]
    if model in ALPHA_OF:
        alphas = defaultdict(list)
        for row in rows_of("alphapruning_alpha"):
            if row["model"] == ALPHA_OF[model]:
                alphas[int(row["block"])].append(float(row["alpha"]))
        mean = np.array([fmean(alphas[block]) for block in range(32)])
        first, last = (depth_scores(BLOCKS, form) == 0 for form in ("first", "last"))
        found["AlphaPruning"] = list(map(float, mean))
        found["first kept, alpha"] = list(map(float, with_kept(mean, first)))
        found["ends kept, alpha"] = list(map(float, with_kept(mean, first | last)))
        line = standardized(np.arange(32.0))
        slope = float(line @ mean) / 32
        left = mean - mean.mean() - slope * line
        found["rising line + alpha's residual"] = list(map(float, line + standardized(left)))
    return found


def correlations(model: str, percent: int) -> dict[str, Any]:
    """Of every rule: rank correlation with the searched ratios, and with depth held fixed."""
    ratios = by_block(model, searched(model, percent))
    found = {}
    for rule, scores in scores_for(model).items():
        plain = rank_correlation(ratios, scores)
        partial = rank_correlation(ratios, scores, given=range(32))
        found[rule] = {
            "rho": plain.to_dict() if plain else None,
            "given depth": partial.to_dict() if partial else None,
        }
    return found


def offsets(percent: int) -> dict[str, list[float]]:
    """How far each kind's ratio lies from its block's, in points: a mean for every model."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for model in models():
        ratios = searched(model, percent)
        mean = by_block(model, ratios)
        for kind in KINDS:
            found[kind].append(100 * fmean(ratios[b, kind] - mean[b] for b in range(32)))
    return found


def models() -> list[str]:
    """The four models."""
    return list(dict.fromkeys(row["model"] for row in rows_of("evopress_levels")))


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page."""
    targets = list(results["correlations"])
    rules = list(dict.fromkeys(rule for t in targets for rule in results["correlations"][t]))

    def cell(target: str, rule: str, which: str) -> str:
        found = results["correlations"][target].get(rule, {}).get(which)
        return f"{found['rho']:.2f}" if found else "-"

    by_rule = markdown_table(
        ["rule", *targets],
        [[rule, *(cell(target, rule, "rho") for target in targets)] for rule in rules],
    )
    measured = [rule for rule in rules if not rule.startswith("depth")]
    given = markdown_table(
        ["given depth", *targets],
        [[rule, *(cell(target, rule, "given depth") for target in targets)] for rule in measured],
    )
    kinds = markdown_table(
        ["points from the block's ratio", *(k.removesuffix("_proj") for k in KINDS)],
        [
            [f"{percent} %", *(_mean_and_range(found[kind]) for kind in KINDS)]
            for percent, found in results["offsets"].items()
        ],
    )
    return {"profiles": by_rule, "profiles given depth": given, "kinds": kinds}


def _mean_and_range(values: list[float]) -> str:
    return f"{fmean(values):+.1f} ({min(values):+.1f} to {max(values):+.1f})"


def main() -> dict[str, str]:
    """Write ``profiles.json`` and return the tables."""
    results = {
        "correlations": {
            f"{model} {percent} %": correlations(model, percent)
            for model in models()
            for percent in (50, 60, 70)
        },
        "offsets": {str(percent): offsets(percent) for percent in (50, 60, 70)},
    }
    save_json(HERE / "profiles.json", {"environment": environment(), **results})
    return tables(results)


if __name__ == "__main__":
    print("\n\n".join(main().values()))
