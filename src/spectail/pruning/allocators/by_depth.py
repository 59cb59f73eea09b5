"""Depth: ratios by a block's place in depth alone, the control for every rule that measures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from spectail import presets
from spectail.allocation.allocation import Allocation
from spectail.allocation.budgets import fill
from spectail.allocation.depth import FORMS, depth_scores
from spectail.allocation.maps import Linear
from spectail.errors import PruneError
from spectail.pruning.allocators.base import (
    Allocator,
    Make,
    check_eps,
    layers_by_unit,
    make_allocation,
    sizes_of,
)
from spectail.pruning.setting import Setting
from spectail.pruning.weights_to_prune import Scope, check_sparsity


@dataclass(frozen=True)
class Depth(Allocator):
    """A line over depth, or the first or last block kept: see ``allocation.depth.FORMS``.

    Without a form, form and eps are chosen together; a rising line, as published for ATP (arXiv
    2502.14770), is taken if there is no choice.
    """

    form: str = ""

    meaning = "the block's place in depth; no weights are read (ATP is the rising line)"

    def __post_init__(self) -> None:
        if self.form and self.form not in FORMS:
            raise PruneError(
                f"allocation depth:FORM needs a form among {', '.join(FORMS)}, not {self.form!r}"
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        """``depth``, or ``depth:FORM``."""
        return f"depth:{self.form}" if self.form else "depth"

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every eps, with the form or with each of them."""
        forms = (self.form,) if self.form else tuple(FORMS)
        return tuple(Setting(eps, f) for f in forms for eps in presets.PRUNE_EPS_CANDIDATES)

    def measure(
        self, model: nn.Module, sparsity: float, *, tokens: Tensor | None, scope: Scope
    ) -> Make:
        """Return the function from form and eps to an allocation; nothing is measured."""

        def make(setting: Setting | None) -> Allocation:
            eps = presets.PRUNE_EPS if setting is None else setting.eps
            form = (setting.form if setting else "") or self.form or "rising"
            return by_depth(model, sparsity, form=form, eps=eps, scope=scope)

        return make


def by_depth(
    model: nn.Module, sparsity: float, *, form: str, eps: float, scope: Scope | None = None
) -> Allocation:
    """Map a form of depth linearly to ratios from 1 - eps to 1 + eps times the sparsity.

    The map and the way the budget is met are those of the rules by alpha.
    """
    check_sparsity(sparsity)
    scope, eps = scope or Scope(), check_eps(eps)
    layers = layers_by_unit(model, scope)
    factors = Linear(1 - eps, 1 + eps).factors(depth_scores(list(layers), form))
    ratios = fill(factors, sizes_of(layers), budget=sparsity, bounds=presets.SPARSITY_BOUNDS)
    rule = {"rule": "depth", "form": form, "eps": eps}
    return make_allocation(
        model, dict(zip(layers, map(float, ratios), strict=True)), sparsity, rule, scope
    )
