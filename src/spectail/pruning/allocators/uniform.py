"""Uniform: one ratio for all layers."""

from __future__ import annotations

from torch import Tensor, nn

from spectail.allocation.allocation import Allocation
from spectail.pruning.allocators.base import (
    FixedAllocator,
    Make,
    layers_by_unit,
    make_allocation,
)
from spectail.pruning.weights_to_prune import Scope, check_sparsity


class Uniform(FixedAllocator):
    """One ratio for all layers."""

    name = "uniform"
    meaning = "nothing: all layers have one ratio"

    def check_budget(self, sparsity: float) -> None:
        """Raise PruneError for what is no sparsity; every other one can be had."""
        check_sparsity(sparsity)

    def measure(
        self, model: nn.Module, sparsity: float, *, tokens: Tensor | None, scope: Scope
    ) -> Make:
        """Return a function that gives the one allocation."""
        return lambda _: uniform(model, sparsity, scope=scope)


def uniform(model: nn.Module, sparsity: float, *, scope: Scope | None = None) -> Allocation:
    """Give every layer of the scope the same ratio; by default every matrix inside blocks."""
    ratio, scope = check_sparsity(sparsity), scope or Scope()
    units = layers_by_unit(model, scope)
    return make_allocation(model, dict.fromkeys(units, ratio), sparsity, {"rule": "uniform"}, scope)
