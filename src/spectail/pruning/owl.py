"""Allocations that use no alpha: one ratio for all layers, and OWL by outliers (arXiv 2310.05175).

An outlier is a weight whose Wanda score |W_ij| norm(X_j) exceeds ``m`` times the mean of its block.
OWL prunes less where there are more of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spectail import presets
from spectail.allocation.allocation import Allocation, LayerValue
from spectail.errors import PruneError
from spectail.models.live.eval_mode import evaluating
from spectail.models.live.walk import module_source
from spectail.models.live.weights import Weight
from spectail.models.naming.blocks import unit_of
from spectail.pruning import scores
from spectail.pruning.blocks import find_blocks, start
from spectail.pruning.calibration import as_tokens
from spectail.pruning.layers import Scope, check_sparsity, weights_of
from spectail.pruning.reach import scope_of
from spectail.pruning.statistics import Squares, Statistic, check_seen, site_of, watching

Array: TypeAlias = NDArray[np.float64]


def uniform(model: nn.Module, sparsity: float, *, scope: Scope | None = None) -> Allocation:
    """Give every layer of the scope the same ratio; by default every matrix inside blocks."""
    ratio, scope = check_sparsity(sparsity), scope or Scope()
    units = _units(model, scope)
    return _allocation(model, dict.fromkeys(units, ratio), sparsity, {"rule": "uniform"}, scope)


def owl(
    model: nn.Module,
    sparsity: float,
    *,
    calibration: Tensor | Sequence[Tensor],
    m: float = presets.OWL_M,
    lam: float = presets.OWL_LAMBDA,
    scope: Scope | None = None,
) -> Allocation:
    """Give each block one ratio, lower the more outliers it has.

    Ratios fall linearly with the share of outliers and span 2 ``lam``. Their mean over all weights
    is ``sparsity``, and they stay between the bounds of ``presets``; the published code assumes
    blocks of equal size and has no bounds. Scores are those of the dense model, which is not
    changed.
    """
    check_sparsity(sparsity)
    scope = scope or scope_of(model, as_tokens(calibration, model, "OWL"))
    shares = outlier_shares(model, calibration, m=m, scope=scope)
    return owl_allocation(model, sparsity, shares, m=m, lam=lam, scope=scope)


def owl_allocation(
    model: nn.Module,
    sparsity: float,
    shares: Mapping[str, float],
    *,
    m: float = presets.OWL_M,
    lam: float,
    scope: Scope | None = None,
) -> Allocation:
    """Make OWL's allocation from the result ``shares`` of ``outlier_shares`` for the same ``m``."""
    check_sparsity(sparsity)
    scope = scope or Scope()
    if not (m > 0 and 0 <= lam <= 1):
        raise PruneError(f"OWL needs m above 0 and lambda from 0 to 1, not {m!r} and {lam!r}")
    # Blocks count by their numbers of weights, because the budget is a mean over weights.
    sizes = {name: sum(layers.values()) for name, layers in _units(model, scope).items()}
    found, weights = (
        np.array([x[name] for name in sizes], dtype=np.float64) for x in (shares, sizes)
    )
    ratios = owl_ratios(found, weights, sparsity=float(sparsity), lam=lam)
    rule = {
        "rule": "owl",
        "m": m,
        "lambda": lam,
        # Kept in the file: they say why a block got its ratio.
        "outlier_percent": {k: round(v, 6) for k, v in shares.items()},
    }
    return _allocation(
        model, dict(zip(sizes, map(float, ratios), strict=True)), sparsity, rule, scope
    )


def owl_ratios(outliers: Array, weights: Array, *, sparsity: float, lam: float) -> Array:
    """Return one ratio per block, lower by 2 ``lam`` for the most outliers than for the fewest.

    Their mean with ``weights`` is ``sparsity``. If a bound of ``presets.SPARSITY_BOUNDS`` cuts a
    ratio, the others change to keep the mean.

    >>> owl_ratios(np.array([1.0, 2.0, 3.0]), np.ones(3), sparsity=0.6, lam=0.1).round(6)
    array([0.7, 0.6, 0.5])
    """
    spread = float(np.ptp(outliers))
    # How much less than the most-pruned block each block loses, from 0 to 2 lambda.
    kept = (outliers - outliers.min()) / spread * 2 * lam if spread > 0 else np.zeros_like(outliers)
    low, high = presets.SPARSITY_BOUNDS
    share = weights / weights.sum()
    # The ratios are clip(shift - kept). Their mean is piecewise linear in the shift and bends only
    # where some block meets a bound, so interpolating between these corners solves for it exactly.
    corners = np.sort(np.concatenate([kept + low, kept + high]))
    means = [float(share @ np.clip(corner - kept, low, high)) for corner in corners]
    if sparsity > means[-1]:
        raise PruneError(f"ratios from {low:g} to {high:g} cannot have the mean {sparsity:g}")
    shift = float(np.interp(sparsity, means, corners))
    return np.asarray(np.clip(shift - kept, low, high))


def outlier_shares(
    model: nn.Module,
    calibration: Tensor | Sequence[Tensor],
    *,
    m: float = presets.OWL_M,
    scope: Scope | None = None,
) -> dict[str, float]:
    """Return, by block, the percentage of Wanda scores above ``m`` times the block's mean score."""
    tokens = as_tokens(calibration, model, "OWL")
    scope, source = scope or scope_of(model, tokens), module_source(model, fingerprint=False)
    weights = weights_of(model, source, {layer.name for layer in scope.cover(source).layers})
    blocks = find_blocks(model, [weight.path for weight in weights])
    inside: dict[str | None, list[Weight]] = {}
    for weight in weights:
        inside.setdefault(unit_of(weight.path), []).append(weight)
    found: dict[str, float] = {}
    with torch.no_grad(), evaluating(model):
        stream = start(model, [block for _, block in blocks], tokens)
        for number, (name, block) in enumerate(blocks):
            members = inside.get(name, [])
            with watching(members, Squares) as seen:
                # The blocks stay dense, so one pass gives both the statistics and the next inputs.
                stream.run(block, number, keep=True)
            # A layer without inputs has scores of 0, which would count as no outliers.
            check_seen(members, seen)
            if members:
                found[unit_of(members[0].name) or name] = _outliers(members, seen, m)
    return found


def _outliers(weights: Sequence[Weight], seen: Mapping[Any, Statistic], m: float) -> float:
    """Return the percentage of outliers in one block, with one matrix in memory at a time."""

    def score(weight: Weight) -> Tensor:
        return scores.wanda(weight.read().float(), seen[site_of(weight)].squares)

    # Scores are computed twice, for the mean and for the count, to save the memory of a block.
    numel = sum(weight.rows * weight.cols for weight in weights)
    mean = sum(float(score(weight).double().sum()) for weight in weights) / numel
    return 100 * sum(int((score(weight) > m * mean).sum()) for weight in weights) / numel


def _units(model: nn.Module, scope: Scope) -> dict[str, dict[str, int]]:
    """Return the number of weights of every layer in scope, by block and layer."""
    found: dict[str, dict[str, int]] = {}
    for layer in scope.cover(module_source(model, fingerprint=False)).layers:
        found.setdefault(unit_of(layer.name) or layer.name, {})[layer.name] = layer.numel
    return found


def _allocation(
    model: nn.Module,
    ratios: Mapping[str, float],
    sparsity: float,
    rule: dict[str, Any],
    scope: Scope,
) -> Allocation:
    source = module_source(model)
    return Allocation(
        target="sparsity",
        budget=float(sparsity),
        settings=rule,
        shares=tuple(
            LayerValue(name, ratios[unit], unit, None, numel)
            for unit, layers in _units(model, scope).items()
            for name, numel in layers.items()
        ),
        left_out=scope.cover(source).left_out,
        source=source.label,
        fingerprint=source.fingerprint,
    )
