"""Allocations by alpha: blocks of high alpha lose more (AlphaPruning, FARMS and this package's)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from spectail import presets
from spectail.allocation.allocate import allocate
from spectail.allocation.allocation import Allocation
from spectail.allocation.left_out import Code, LeftOut, Reason
from spectail.allocation.maps import Linear
from spectail.allocation.targets import Sparsity
from spectail.analysis import Analysis
from spectail.core.spec import Spec
from spectail.measuring.run import analyze
from spectail.pruning.allocators.base import Allocator, Make, check_eps
from spectail.pruning.setting import Setting
from spectail.pruning.weights_to_prune import Scope


@dataclass(frozen=True)
class ByAlpha(Allocator):
    """The mean alpha of a block, measured as ``spec`` says, mapped linearly to its ratio."""

    name: str
    meaning: str
    spec: Spec
    standardize_by_kind: bool = False
    """Whether an alpha is compared with those of the same kind of layer only."""
    by: str = "alpha"
    """What the ratios go by beside alpha: see ``allocation.scores``."""

    def measure(
        self, model: nn.Module, sparsity: float, *, tokens: Tensor | None, scope: Scope
    ) -> Make:
        """Measure the alphas of the model once."""
        analysis = analyze(model, spec=self.spec)
        target = Sparsity(standardize_by_kind=self.standardize_by_kind, by=self.by)
        return partial(_make, analysis, sparsity, target, scope)


def _make(
    analysis: Analysis,
    sparsity: float,
    target: Sparsity,
    scope: Scope,
    setting: Setting | None,
) -> Allocation:
    # A published value: AlphaPruning uses it for LLaMA-7B.
    eps = presets.PRUNE_EPS if setting is None else check_eps(setting.eps)
    found = allocate(
        analysis,
        target=replace(target, map=Linear(1 - eps, 1 + eps)),
        budget=sparsity,
        include=scope.include,
        exclude=(*scope.exclude, *scope.unseen),
        kinds=scope.of.kinds,
        types=scope.of.types,
        # A layer too small for a comparable alpha (the small projections of hybrid models) takes
        # the mean of its block, with a note.
        missing="mean",
    )
    # Layers that text does not reach were excluded by name; their own reason says more.
    unseen = {name: Reason(Code.UNREACHED, text) for name, text in scope.unseen.items()}
    left_out = (LeftOut(x.name, unseen.get(x.name, x.why)) for x in found.left_out)
    return replace(found, left_out=tuple(left_out))
