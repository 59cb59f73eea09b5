"""ER: ratios by the shape of a layer alone (Mocanu et al. 2018; Evci et al. 2020, RigL)."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from spectail import presets
from spectail.allocation.allocation import Allocation
from spectail.allocation.budgets import fill
from spectail.pruning.allocators.base import (
    Array,
    FixedAllocator,
    Make,
    make_allocation,
    weights_in,
)
from spectail.pruning.weights_to_prune import Scope


class ErdosRenyi(FixedAllocator):
    """The part that is kept grows with (n_in + n_out) / (n_in n_out), so small layers keep more."""

    name = "er"
    meaning = "the layer's shape: small layers keep more (Erdos-Renyi)"

    def measure(
        self, model: nn.Module, sparsity: float, *, tokens: Tensor | None, scope: Scope
    ) -> Make:
        """Return the function that gives the one allocation."""
        weights = weights_in(model, scope)
        shapes = np.array([(weight.rows, weight.cols) for weight in weights], dtype=np.float64)
        ratios = erdos_renyi(shapes, sparsity)
        by_layer = {w.name: float(r) for w, r in zip(weights, ratios, strict=True)}

        def make(_: object) -> Allocation:
            return make_allocation(model, by_layer, sparsity, {"rule": "er"}, scope)

        return make


def erdos_renyi(shapes: Array, sparsity: float) -> Array:
    """Return one ratio of zeros per layer of shape (n_out, n_in), (layers, 2).

    What a layer keeps is limited to all of it; the others then keep more, so the mean over all
    weights is ``sparsity``.
    """
    numel = shapes.prod(axis=1)
    low, high = presets.SPARSITY_BOUNDS
    kept = fill(shapes.sum(axis=1) / numel, numel, budget=1 - sparsity, bounds=(1 - high, 1 - low))
    return np.asarray(1 - kept)
