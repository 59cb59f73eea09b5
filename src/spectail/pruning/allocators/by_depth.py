"""Depth: ratios by a block's place in depth alone, the control for every rule that measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from spectail import presets
from spectail.allocation.allocation import Allocation
from spectail.allocation.budgets import fill, shift
from spectail.allocation.depth import FORMS, depth_scores
from spectail.allocation.maps import Linear
from spectail.errors import PruneError
from spectail.models.live.walk import module_source
from spectail.models.naming.blocks import unit_of
from spectail.models.naming.kinds import kind_of
from spectail.pruning.allocators.base import (
    Allocator,
    Array,
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
    by_kind: bool = False
    """Whether q and k lose more than their block, and v and o less: ``presets.KIND_OFFSETS``."""

    def __post_init__(self) -> None:
        if self.form and self.form not in FORMS:
            raise PruneError(
                f"allocation {self.family}:FORM needs a form among {', '.join(FORMS)}, "
                f"not {self.form!r}"
            )

    @property
    def family(self) -> str:
        """``depth``, or ``depth-kind``."""
        return "depth-kind" if self.by_kind else "depth"

    @property
    def name(self) -> str:  # type: ignore[override]
        """The family, with ``:FORM`` if the form is given."""
        return f"{self.family}:{self.form}" if self.form else self.family

    @property
    def meaning(self) -> str:  # type: ignore[override]
        """What decides which layers lose more."""
        kinds = " and the kind of layer" if self.by_kind else ""
        return f"the block's place in depth{kinds}; no weights are read"

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
            return by_depth(model, sparsity, form=form, eps=eps, by_kind=self.by_kind, scope=scope)

        return make


def by_depth(
    model: nn.Module,
    sparsity: float,
    *,
    form: str,
    eps: float,
    by_kind: bool = False,
    scope: Scope | None = None,
) -> Allocation:
    """Map a form of depth linearly to ratios from 1 - eps to 1 + eps times the sparsity.

    The map and the way the budget is met are those of the rules by alpha. ``by_kind`` then moves
    the ratios of q, k, v and o away from their block's, and all together to meet the budget.
    """
    check_sparsity(sparsity)
    scope, eps = scope or Scope(), check_eps(eps)
    layers = layers_by_unit(model, scope)
    factors = Linear(1 - eps, 1 + eps).factors(_depth(model, layers, form))
    bounds = presets.SPARSITY_BOUNDS
    of_blocks = fill(factors, sizes_of(layers), budget=sparsity, bounds=bounds)
    ratios = dict(zip(layers, map(float, of_blocks), strict=True))
    rule = {"rule": "depth-kind" if by_kind else "depth", "form": form, "eps": eps}
    if by_kind:
        ratios = _moved_by_kind(layers, ratios, sparsity)
    return make_allocation(model, ratios, sparsity, rule, scope)


def _depth(model: nn.Module, layers: Mapping[str, Mapping[str, int]], form: str) -> Array:
    """Return the depth score of every block among the blocks of the model, pruned or not."""
    source = module_source(model, fingerprint=False)
    blocks = filter(None, (unit_of(layer.name) for layer in source.layers))
    return depth_scores([unit_of(next(iter(own))) for own in layers.values()], form, blocks=blocks)


def _moved_by_kind(
    layers: Mapping[str, Mapping[str, int]], of_blocks: Mapping[str, float], sparsity: float
) -> dict[str, float]:
    """Return a ratio per layer: its block's plus the offset of its kind, moved to the budget."""
    names = {name: unit for unit, members in layers.items() for name in members}
    wanted = np.array(
        [of_blocks[unit] + _offset(kind_of(name), sparsity) for name, unit in names.items()]
    )
    numel = np.array([n for members in layers.values() for n in members.values()], dtype=float)
    found = shift(wanted, numel, budget=sparsity, bounds=presets.SPARSITY_BOUNDS)
    return dict(zip(names, map(float, found), strict=True))


def _offset(kind: str, sparsity: float) -> float:
    """Return the offset of a kind, linear between the sparsities that were searched."""
    known = [offsets.get(kind, 0.0) for offsets in presets.KIND_OFFSETS.values()]
    return float(np.interp(sparsity, list(presets.KIND_OFFSETS), known))
