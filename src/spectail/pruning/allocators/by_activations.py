"""OWL, DLP and DSA: one number per block from Wanda's scores |W_ij| norm(X_j) of the dense model.

All three map their number linearly to ratios; they differ in the number. Published code assumes
blocks of equal size and has no bounds; here the mean over all weights is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from spectail import presets
from spectail.allocation.allocation import Allocation
from spectail.allocation.budgets import shift
from spectail.errors import PruneError
from spectail.models.live.eval_mode import evaluating
from spectail.models.live.weights import Weight
from spectail.models.naming.blocks import unit_of
from spectail.pruning import scores
from spectail.pruning.allocators.base import (
    Allocator,
    Array,
    Make,
    check_eps,
    layers_by_unit,
    make_allocation,
    sizes_of,
    weights_in,
)
from spectail.pruning.blocks import find_blocks, start
from spectail.pruning.calibration import as_tokens
from spectail.pruning.reached_layers import scope_of
from spectail.pruning.setting import Setting
from spectail.pruning.statistics import Squares, Statistic, check_seen, site_of, watching
from spectail.pruning.weights_to_prune import Scope, check_sparsity

Score: TypeAlias = Callable[[Weight], Tensor]
"""From a weight to Wanda's scores of its dense matrix, (rows, cols)."""
Measure: TypeAlias = Callable[[Sequence[Weight], Score], float]
"""One number for the weights of a block."""


@dataclass(frozen=True)
class ByActivations(Allocator):
    """A number per block, lower ratios where it is higher."""

    name: str
    meaning: str
    number: Measure
    """From a block's weights to the number that the ratio goes by."""
    width: float
    """Half the published range of the ratios."""

    needs_text = True

    def measure(
        self, model: nn.Module, sparsity: float, *, tokens: Tensor | None, scope: Scope
    ) -> Make:
        """Run the text through the dense model once."""
        if tokens is None:
            raise PruneError(f"the allocation {self.name} needs calibration text")
        found = measure_blocks(model, tokens, self.number, scope=scope)
        return partial(self._make, model, sparsity, found, scope)

    def _make(
        self,
        model: nn.Module,
        sparsity: float,
        found: Mapping[str, float],
        scope: Scope,
        setting: Setting | None,
    ) -> Allocation:
        # Ratios span 2 eps times the sparsity, as they do by alpha: the rules then compare.
        lam = self.width if setting is None else check_eps(setting.eps) * sparsity
        eps = {} if setting is None else {"eps": float(setting.eps)}
        rule = {"rule": self.name, "lambda": lam, **eps}
        return by_number(model, sparsity, found, lam=lam, rule=rule, scope=scope)


def by_number(
    model: nn.Module,
    sparsity: float,
    found: Mapping[str, float],
    *,
    lam: float,
    rule: dict[str, Any],
    scope: Scope | None = None,
) -> Allocation:
    """Map the numbers of blocks to ratios that span 2 ``lam``, the highest number to the lowest."""
    check_sparsity(sparsity)
    scope = scope or Scope()
    if not 0 <= lam <= 1:
        raise PruneError(f"{rule['rule']} needs lambda from 0 to 1, not {lam!r}")
    layers = layers_by_unit(model, scope)
    numbers = np.array([found[unit] for unit in layers], dtype=np.float64)
    ratios = falling_ratios(numbers, sizes_of(layers), sparsity=float(sparsity), lam=lam)
    # The numbers are kept in the file: they say why a block got its ratio.
    rule = {**rule, "by block": {unit: float(f"{found[unit]:.7g}") for unit in layers}}
    return make_allocation(
        model, dict(zip(layers, map(float, ratios), strict=True)), sparsity, rule, scope
    )


def falling_ratios(numbers: Array, weights: Array, *, sparsity: float, lam: float) -> Array:
    """Return one ratio per block, lower by 2 ``lam`` for the highest number than for the lowest.

    This is the map of OWL, DLP and DSA. The mean of the ratios with ``weights`` is ``sparsity``. If
    a bound of ``presets.SPARSITY_BOUNDS`` cuts a ratio, the others change to keep the mean.

    >>> falling_ratios(np.array([1.0, 2.0, 3.0]), np.ones(3), sparsity=0.6, lam=0.1).round(6)
    array([0.7, 0.6, 0.5])
    """
    spread = float(np.ptp(numbers))
    # How much less than the most-pruned block each block loses, from 0 to 2 lambda.
    kept = (numbers - numbers.min()) / spread * 2 * lam if spread > 0 else np.zeros_like(numbers)
    return shift(-kept, weights, budget=sparsity, bounds=presets.SPARSITY_BOUNDS)


def measure_blocks(
    model: nn.Module,
    calibration: Tensor | Sequence[Tensor],
    measure: Measure,
    *,
    scope: Scope | None = None,
) -> dict[str, float]:
    """Return ``measure`` of every block's weights, whose inputs come from the dense model."""
    tokens = as_tokens(calibration, model, "allocation by activations")
    weights = weights_in(model, scope or scope_of(model, tokens))
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
            # A layer without inputs has scores of 0, which would count as unimportant.
            check_seen(members, seen)
            if members:
                unit = unit_of(members[0].name) or name
                found[unit] = measure(members, partial(wanda_score, seen=seen))
    return found


def wanda_score(weight: Weight, *, seen: Mapping[Any, Statistic]) -> Tensor:
    """Return Wanda's scores of a weight, given the statistics of its inputs."""
    try:
        return scores.wanda(weight.read().float(), seen[site_of(weight)].squares)
    except PruneError as error:
        raise PruneError(f"{weight.name}: {error}") from None


def outlier_percent(weights: Sequence[Weight], score: Score, *, m: float = presets.OWL_M) -> float:
    """Return the percentage of scores above ``m`` times the block's mean score (OWL)."""
    if not m > 0:
        raise PruneError(f"OWL needs m above 0, not {m!r}")
    # Scores are computed twice, for the mean and for the count, to save the memory of a block.
    mean = mean_score(weights, score)
    over = sum(int((score(weight) > m * mean).sum()) for weight in weights)
    return 100 * over / _numel(weights)


def mean_score(weights: Sequence[Weight], score: Score) -> float:
    """Return the mean of |W_ij| norm(X_j) over a block's weights (DLP's code; its paper: median).

    DLP takes r = 1 - m / sum(m) and keeps a part that rises linearly with r. That is a map which
    falls linearly in m, and the factor of sum(m) does not change it.
    """
    return sum(float(score(weight).double().sum()) for weight in weights) / _numel(weights)


def log_variance(weights: Sequence[Weight], score: Score) -> float:
    """Return asin(atan(v)) of the variance v of a block's log scores (DSA); 0 where atan(v) > 1.

    Scores of exactly 0 have no logarithm and do not count.
    """
    count, total, squares = 0, 0.0, 0.0
    for weight in weights:
        found = score(weight).double()
        logs = found[found > 0].log()
        count += logs.numel()
        total += float(logs.sum())
        squares += float(logs.square().sum())
    if count == 0:
        return 0.0
    variance = max(squares / count - (total / count) ** 2, 0.0)
    angle = math.atan(variance)
    return math.asin(angle) if angle <= 1 else 0.0


def _numel(weights: Sequence[Weight]) -> int:
    return sum(weight.rows * weight.cols for weight in weights)


OWL = ByActivations(
    "owl",
    "outliers among Wanda's scores: blocks with more of them lose less (arXiv 2310.05175)",
    outlier_percent,
    presets.OWL_LAMBDA,
)
DLP = ByActivations(
    "dlp",
    "the mean of Wanda's scores: blocks of small scores lose less (arXiv 2505.23807)",
    lambda weights, score: -mean_score(weights, score),
    presets.DLP_WIDTH,
)
DSA = ByActivations(
    "dsa",
    "the variance of the logarithm of Wanda's scores: blocks of more lose less (DSA)",
    log_variance,
    presets.DSA_LAMBDA,
)
