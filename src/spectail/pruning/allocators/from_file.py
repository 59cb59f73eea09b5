"""An allocation that ``spectail allocate`` wrote to a file."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from spectail.allocation.allocation import Allocation
from spectail.errors import AllocationError, PruneError
from spectail.pruning.allocators.base import FixedAllocator, Make
from spectail.pruning.weights_to_prune import Scope, check_sparsity, in_names_of


@dataclass(frozen=True)
class FromFile(FixedAllocator):
    """The ratios of a file, which must have the sparsity asked for."""

    name: str
    """The path of the file."""

    meaning = "the ratios of a file"

    def check_scope(self, scope: Scope) -> None:
        """Refuse a choice of layers: the file names its layers itself."""
        if scope.chosen:
            raise PruneError(
                "include, exclude, kind and type go with a named allocation: "
                f"the file {self.name} names its layers itself"
            )

    def check_budget(self, sparsity: float) -> None:
        """Raise PruneError or AllocationError unless the file has ratios of this mean."""
        self._read(check_sparsity(sparsity))

    def measure(
        self, model: nn.Module, sparsity: float, *, tokens: Tensor | None, scope: Scope
    ) -> Make:
        """Read the file, whose layers may have other names than those of the model."""
        allocation = in_names_of(model, self._read(sparsity))
        return lambda _: allocation

    def _read(self, sparsity: float) -> Allocation:
        """Return the allocation of the file, which must have this sparsity."""
        allocation = Allocation.load(self.name)
        if allocation.target != "sparsity":
            raise AllocationError(
                f"{self.name} allocates {allocation.target}: expected an allocation of sparsity"
            )
        # Allocations meet their budget far more closely than this.
        if abs(allocation.realised - sparsity) > 1e-6:
            raise PruneError(
                f"{self.name} has a sparsity of {allocation.realised:g}, "
                f"not the {sparsity:g} asked for"
            )
        return allocation
