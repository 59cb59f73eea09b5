"""The allocations that are compared: what is measured, and how it becomes a ratio per layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

import spectail as st
from spectail import presets
from spectail.allocation.maps import Linear
from spectail.allocation.targets import Sparsity
from spectail.allocation.units import standardized_by_kind
from spectail.core.windows import Grid
from spectail.models.naming.blocks import unit_of
from spectail.pruning.allocators.by_activations import falling_ratios
from spectail.results.records import LayerRecord

Outliers = Mapping[str, float]
"""OWL's percent of outliers by block."""
Change = Callable[[tuple[LayerRecord, ...], Outliers], tuple[LayerRecord, ...]]
"""Replaces alphas by what a candidate goes by instead."""


@dataclass(frozen=True)
class Rule:
    """How layers get their ratio: by the alphas of ``spec``, as they are or changed.

    None: by no alphas.
    """

    spec: st.Spec | None = None
    level: str = "block"
    standardize_by_kind: bool = False
    change: Change | None = None
    by_outliers: bool = False


def ratios(
    rule: Rule,
    eps: float | None,
    sparsity: float,
    *,
    analysis: st.Analysis | None,
    even: st.Allocation,
    owl: Outliers,
) -> st.Allocation | dict[str, float]:
    """Ratios between about sparsity (1 - eps) and sparsity (1 + eps) that meet the budget.

    ``even`` is the uniform allocation; it says which layers there are,
    and what a rule without eps gives.
    """
    if eps is None:
        return even
    if rule.by_outliers:
        return by_outliers(owl, even, eps * sparsity)
    if analysis is None:
        raise ValueError("ratios by alpha need an analysis")
    if rule.change:
        analysis = replace(analysis, layers=rule.change(analysis.layers, owl))
    target = Sparsity(
        map=Linear(1 - eps, 1 + eps), level=rule.level, standardize_by_kind=rule.standardize_by_kind
    )
    return st.allocate(analysis, target=target, budget=sparsity)


def by_outliers(owl: Outliers, even: st.Allocation, lam: float) -> dict[str, float]:
    """OWL's ratios, from sparsity - lam to sparsity + lam."""
    sizes: dict[str, int] = {}
    for share in even.shares:
        sizes[share.unit] = sizes.get(share.unit, 0) + share.numel
    found, numel = (np.array([x[unit] for unit in sizes], dtype=np.float64) for x in (owl, sizes))
    by_block = dict(
        zip(sizes, falling_ratios(found, numel, sparsity=even.budget, lam=lam), strict=True)
    )
    return {share.name: float(by_block[share.unit]) for share in even.shares}


def shrunk(layers: tuple[LayerRecord, ...], owl: Outliers) -> tuple[LayerRecord, ...]:
    """Alphas pulled to the mean of their kind.

    The more, the wider their error bar (empirical Bayes).
    """
    found = list(layers)
    for kind in {layer.kind for layer in layers}:
        chosen = [i for i, layer in enumerate(layers) if layer.kind == kind and unit_of(layer.name)]
        if len(chosen) < 2:
            continue
        alpha, error = (
            np.array([getattr(layers[i], name) for i in chosen]) for name in ("alpha", "alpha_se")
        )
        true = max(float(alpha.var(ddof=1) - np.mean(error**2)), 0.0)
        pulled = alpha.mean() + (alpha - alpha.mean()) * true / (true + error**2)
        for i, value in zip(chosen, pulled, strict=True):
            found[i] = replace(layers[i], alpha=float(value))
    return tuple(found)


def with_variance(layers: tuple[LayerRecord, ...], owl: Outliers) -> tuple[LayerRecord, ...]:
    """Blocks by alpha and by the spread of their weights.

    Heavy tails and large weights are both kept.
    """
    return _by_block(
        layers, {unit: -np.log(np.mean(v)) for unit, v in _columns(layers, "weight_var").items()}
    )


def standardized_with_variance(
    layers: tuple[LayerRecord, ...], owl: Outliers
) -> tuple[LayerRecord, ...]:
    """Blocks by alpha within its kind and by the spread of their weights."""
    return with_variance(standardized_by_kind(layers), owl)


def with_outliers(layers: tuple[LayerRecord, ...], owl: Outliers) -> tuple[LayerRecord, ...]:
    """Blocks by alpha and by OWL's outliers, in equal parts."""
    return _by_block(layers, {unit: -float(owl[unit]) for unit in _columns(layers, "alpha")})


OFFSET = 10.0
"""Keeps scores positive, as alphas are; a linear map is blind to it."""

MAIN: dict[str, Rule] = {
    "uniform": Rule(),
    "OWL": Rule(by_outliers=True),
    "AlphaPruning": Rule(presets.ALPHAPRUNING),
    "FARMS as published, 10 x 10": Rule(presets.FARMS_LLM),
    "FARMS default": Rule(presets.FARMS),
}
"""The comparison: every allocation with the same choice of eps."""

OTHER_GRID = "FARMS as published, 15 x 15"

PARTS: dict[str, Rule] = {
    OTHER_GRID: Rule(replace(presets.FARMS_LLM, placement=Grid(15))),
    "whole, median": Rule(presets.FULL),
    "whole, top 10 %": Rule(st.Spec(window="whole", cutoff="top:0.1")),
    "windows, peak": Rule(st.Spec(cutoff="peak")),
    "windows, top 10 %": Rule(st.Spec(cutoff="top:0.1")),
}
"""What another grid changes, what the windows bring and what the cutoff brings; AlphaPruning and
the default are the other two of the six.
"""

VARIANTS: dict[str, Rule] = {
    "per layer": Rule(presets.FARMS, level="layer"),
    "per layer, top 10 %": Rule(st.Spec(cutoff="top:0.1"), level="layer"),
    "KS": Rule(st.Spec(cutoff="ks")),
    "windows of 128": Rule(st.Spec(window=128)),
    "windows of 64": Rule(st.Spec(window=64)),
    "windows of 64, top 10 %": Rule(st.Spec(window=64, cutoff="top:0.1")),
    "shrunk by error bars": Rule(presets.FARMS, change=shrunk),
    "within kinds": Rule(presets.FARMS, standardize_by_kind=True),
    "within kinds, top 10 %": Rule(st.Spec(cutoff="top:0.1"), standardize_by_kind=True),
    "within kinds, KS": Rule(st.Spec(cutoff="ks"), standardize_by_kind=True),
    "per layer, within kinds": Rule(presets.FARMS, level="layer", standardize_by_kind=True),
    "per layer, within kinds, top 10 %": Rule(
        st.Spec(cutoff="top:0.1"), level="layer", standardize_by_kind=True
    ),
    "alpha and Var(W)": Rule(presets.FARMS, change=with_variance),
    "within kinds, top 10 %, and Var(W)": Rule(
        st.Spec(cutoff="top:0.1"), change=standardized_with_variance
    ),
    "alpha and outliers": Rule(presets.FARMS, change=with_outliers),
    "alpha and outliers, top 10 %": Rule(st.Spec(cutoff="top:0.1"), change=with_outliers),
}
"""Attempts to do better, compared on selection text only."""

RULES = MAIN | PARTS | VARIANTS
BASELINE = "FARMS as published, 10 x 10"


def block_alphas(layers: tuple[LayerRecord, ...]) -> dict[str, float]:
    """Mean alpha by block."""
    return {unit: fmean(values) for unit, values in _columns(layers, "alpha").items()}


def _columns(layers: tuple[LayerRecord, ...], column: str) -> dict[str, list[float]]:
    """A column's values by block, of layers that lie in one."""
    found: dict[str, list[float]] = {}
    for layer in layers:
        unit = unit_of(layer.name)
        if unit and layer.status == "ok":
            found.setdefault(unit, []).append(getattr(layer, column))
    return found


def _by_block(
    layers: tuple[LayerRecord, ...], other: Mapping[str, float]
) -> tuple[LayerRecord, ...]:
    """Every alpha replaced by the sum of two standard scores of its block.

    These are its scores in mean alpha and in ``other``.
    """
    alphas = block_alphas(layers)
    both = _scores(np.array(list(alphas.values()))) + _scores(
        np.array([other[unit] for unit in alphas])
    )
    scores = dict(zip(alphas, OFFSET + both, strict=True))
    return tuple(
        replace(layer, alpha=float(scores.get(unit_of(layer.name) or "", layer.alpha)))
        for layer in layers
    )


def _scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = values.std()
    return np.asarray((values - values.mean()) / spread if spread > 0 else values * 0)
