"""From alphas per layer to what the question needs.

Does the order of the layers hold, and does it inform?
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import spearmanr

from experiments.stability.measure import CUTOFFS, HALVES

Column: TypeAlias = Sequence[float | None]
MIN_LAYERS = 8
"""A rank correlation over fewer layers says little."""
PAIRS = (("common", "half"), ("64", "96"), ("64", "128"), ("96", "128"))
"""Windows that are compared with each other."""
RULES = ("common", "half", "64", "96", "128")


def summarise(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By model, window rule and cutoff (see ``_at_side``), with rank correlations.

    The correlations are between windows, by model and cutoff.
    """
    return {
        "rules": {
            name: {
                rule: _at_side(model["sides"][side_of(rule, model)])
                for rule in RULES
                if side_of(rule, model) in model["sides"]
            }
            for name, model in models.items()
        },
        "window pairs": {name: _between_sides(model) for name, model in models.items()},
    }


def side_of(rule: str, model: Mapping[str, Any]) -> str:
    """The window's side that a rule gives a model."""
    named = {"common": str(model["common"]), "half": str(model["common"] // 2)}
    return named.get(rule, rule)


def rank_correlation(a: Column, b: Column) -> float | None:
    """Spearman's correlation over the layers that have both.

    None below MIN_LAYERS or where one does not vary.
    """
    pairs = np.array([(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None])
    if len(pairs) < MIN_LAYERS or not pairs.std(axis=0).all():
        return None
    return round(float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic), 4)


def _at_side(side: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each cutoff's numbers at one window, from what was measured there."""
    placements = [name for name in side["alpha"] if name not in HALVES]
    return {
        cutoff: {
            "placements": {
                f"{a} | {b}": found
                for a, b in combinations(placements, 2)
                if (found := rank_correlation(side["alpha"][a][cutoff], side["alpha"][b][cutoff]))
                is not None
            },
            "halves": rank_correlation(*(side["alpha"][half][cutoff] for half in HALVES))
            if all(half in side["alpha"] for half in HALVES)
            else None,
            **_information(side["alpha"]["tile"][cutoff], side["se"].get(cutoff, [])),
            "as median": rank_correlation(
                side["alpha"]["tile"][cutoff], side["alpha"]["tile"]["median"]
            ),
            "shift": _shift([side["alpha"][name][cutoff] for name in placements]),
            "seconds": middle(side["seconds"][cutoff]),
        }
        for cutoff in CUTOFFS
    }


def _information(alphas: Column, errors: Column) -> dict[str, Any]:
    """Least and greatest alpha, its spread over layers, its usual error.

    The last value is the ratio of spread and error.
    """
    known = [alpha for alpha in alphas if alpha is not None]
    error = middle(errors)
    spread = statistics.stdev(known) if len(known) > 1 else None
    return {
        "layers": len(known),
        "least": min(known, default=None),
        "greatest": max(known, default=None),
        "sd": _short(spread),
        "se": error,
        "signal": _short(spread / error)
        if spread is not None and error and len(known) >= MIN_LAYERS
        else None,
    }


def _shift(columns: Sequence[Column]) -> float | None:
    """Median over layers of (greatest - least) / mean alpha over the placements."""
    layers = [
        [alpha for alpha in layer if alpha is not None] for layer in zip(*columns, strict=True)
    ]
    return middle(
        [(max(layer) - min(layer)) / statistics.fmean(layer) for layer in layers if len(layer) > 1]
    )


def _between_sides(model: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Rank correlations of tile alphas between two windows, by cutoff."""
    found: dict[str, dict[str, float | None]] = {cutoff: {} for cutoff in CUTOFFS}
    for rules in PAIRS:
        a, b = (model["sides"].get(side_of(rule, model)) for rule in rules)
        if a is None or b is None or a is b:
            continue
        for cutoff in CUTOFFS:
            columns = (a["alpha"]["tile"][cutoff], b["alpha"]["tile"][cutoff])
            found[cutoff][" | ".join(rules)] = rank_correlation(*columns)
    return found


def middle(values: Column) -> float | None:
    """Median of the numbers among the values, to four digits; None where there is none."""
    known = [value for value in values if value is not None]
    return _short(statistics.median(known)) if known else None


def worst_placement(cutoff: Mapping[str, Any]) -> float | None:
    """The least rank correlation over the pairs of placements."""
    return min(cutoff["placements"].values(), default=None)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
