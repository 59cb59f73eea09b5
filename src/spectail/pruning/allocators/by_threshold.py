"""Global and LAMP: one threshold for all layers together; the ratio of a layer is what lies below.

Old controls of the pruning literature. They read the weights and no text. Layers of small weights
can lose nearly everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from spectail import presets
from spectail.allocation.allocation import Allocation
from spectail.allocation.budgets import fill
from spectail.pruning import scores
from spectail.pruning.allocators.base import (
    Array,
    FixedAllocator,
    Make,
    make_allocation,
    weights_in,
)
from spectail.pruning.weights_to_prune import Scope

_DROPPED_BITS = 13
"""Of a positive float32, whose order is that of its bits, all but these are told apart.

Numbers in one bin differ by 2 ** -10 of themselves at most; 2 ** 18 bins per layer are small beside
the layer, whose scores would otherwise have to be kept and sorted with those of all others.
"""
_BINS = 1 << (31 - _DROPPED_BITS)


@dataclass(frozen=True)
class ByThreshold(FixedAllocator):
    """One threshold on a score of all weights of all layers."""

    name: str
    meaning: str
    score: Callable[[Tensor], Tensor]
    """From a matrix to scores of at least 0, (rows, cols)."""

    def measure(
        self, model: nn.Module, sparsity: float, *, tokens: Tensor | None, scope: Scope
    ) -> Make:
        """Read all weights once."""
        weights = weights_in(model, scope)
        with torch.no_grad():
            counts = np.stack([_histogram(self.score(weight.read().float())) for weight in weights])
        ratios = shares_below(counts, sparsity)
        by_layer = {w.name: float(r) for w, r in zip(weights, ratios, strict=True)}

        def make(_: object) -> Allocation:
            return make_allocation(model, by_layer, sparsity, {"rule": self.name}, scope)

        return make


def lamp_scores(weights: Tensor) -> Tensor:
    """Return w_u ** 2 / sum of w_v ** 2 over all v with |w_v| >= |w_u| (LAMP, arXiv 2010.07611).

    Equal weights count in the order of the matrix, so that each keeps a score of its own.
    """
    squares = weights.reshape(-1).double().square()
    ordered, order = torch.sort(squares, stable=True)
    # The sum over a weight and all larger ones: what is left of the total from here on.
    left = ordered.flip(0).cumsum(0).flip(0)
    found = torch.where(left > 0, ordered / left, torch.zeros_like(left))
    return torch.empty_like(found).scatter_(0, order, found).reshape(weights.shape).float()


def shares_below(counts: Array, sparsity: float) -> Array:
    """Return the part of every layer below one threshold that leaves ``sparsity`` below it overall.

    ``counts`` (layers, bins) are histograms of scores over common bins. The bin that the threshold
    cuts is cut alike in every layer.
    """
    totals = counts.sum(axis=1)
    below = np.concatenate([[0.0], np.cumsum(counts.sum(axis=0))])
    wanted = sparsity * below[-1]
    # The last bin edge with no more than wanted below it; empty bins in between do not matter.
    edge = min(int(np.searchsorted(below, wanted, side="right")) - 1, counts.shape[1] - 1)
    inside = below[edge + 1] - below[edge]
    part = (wanted - below[edge]) / inside if inside > 0 else 0.0
    found = (counts[:, :edge].sum(axis=1) + part * counts[:, edge]) / totals
    if not found.max() > 0:
        return np.asarray(found)
    # The bounds matter where a layer would lose every weight; the others then take it over.
    return fill(found, totals.astype(np.float64), budget=sparsity, bounds=presets.SPARSITY_BOUNDS)


def _histogram(found: Tensor) -> Array:
    """Count scores of at least 0 in bins that are the same for every matrix."""
    # The bits of a positive float, read as a whole number, have the order of the floats.
    bits = found.reshape(-1).contiguous().cpu().view(torch.int32) >> _DROPPED_BITS
    return torch.bincount(bits.clamp_(min=0), minlength=_BINS).numpy().astype(np.float64)


GLOBAL = ByThreshold(
    "global", "the size of the weights, with one threshold for all layers", scores.magnitude
)
LAMP = ByThreshold(
    "lamp",
    "the size of the weights over that of the larger ones of the layer, with one threshold",
    lamp_scores,
)
