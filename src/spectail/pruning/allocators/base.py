"""What an allocator is: a rule that gives every layer its ratio of zeros at one overall sparsity.

A new allocator is one file with one class, and one line in the table of
``spectail.pruning.allocators``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from spectail import presets
from spectail.allocation.allocation import Allocation, LayerValue
from spectail.errors import PruneError
from spectail.models.live.walk import module_source
from spectail.models.live.weights import Weight
from spectail.models.naming.blocks import unit_of
from spectail.models.source import Layer
from spectail.pruning.calibration import as_tokens
from spectail.pruning.reached_layers import scope_of
from spectail.pruning.setting import Setting
from spectail.pruning.weights_to_prune import (
    Scope,
    check_finite,
    check_sparsity,
    weights_of,
)

Array: TypeAlias = NDArray[np.float64]


Make: TypeAlias = Callable[[Setting | None], Allocation]
"""From a setting to the allocation; None is the published setting."""


@dataclass(frozen=True)
class Prepared:
    """An allocator that has measured a model: from a setting to an allocation, at no cost."""

    make: Make
    settings: tuple[Setting, ...]
    """The settings to choose from; none if the allocator has no eps."""

    def __call__(self, setting: Setting | float | None = None) -> Allocation:
        """Return the allocation of a setting, or of an eps; None is the published setting.

        Raises:
            PruneError: eps is no number from 0 to 1, or one is given and the rule has none.

        """
        if setting is None:
            return self.make(None)
        found = setting if isinstance(setting, Setting) else Setting(check_eps(setting))
        check_eps(found.eps)
        if not self.settings:
            raise PruneError("this allocation has no eps: leave it out")
        return self.make(found)


class Allocator(ABC):
    """A rule that makes allocations. Everything slow is done once, whatever the setting."""

    name: str
    """The name on the command line."""
    meaning: str
    """What decides which layers lose more, as a phrase after "goes by", for the page of a run."""
    needs_text: bool = False
    """Whether it needs calibration text."""

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings to choose from; every rule with an eps has the same values for it."""
        return tuple(Setting(eps) for eps in presets.PRUNE_EPS_CANDIDATES)

    def prepare(
        self,
        model: nn.Module,
        sparsity: float,
        *,
        calibration: Tensor | Sequence[Tensor] | None = None,
        scope: Scope | None = None,
    ) -> Prepared:
        """Measure the dense model, and return what makes an allocation of any setting.

        Args:
            model: the dense model; it is not changed.
            sparsity: the ratio of zeros over all weights that take part, met to 1e-9.
            calibration: token ids (samples, length), which some rules need.
            scope: which layers take part; by default every matrix inside blocks, and of them those
                that the text reaches if the rule needs text.

        Raises:
            PruneError: the sparsity, the model or the text cannot be used.

        """
        self.check_budget(sparsity)
        tokens = None
        if self.needs_text:
            if calibration is None:
                raise PruneError(f"the allocation {self.name} needs calibration text")
            tokens = as_tokens(calibration, model, f"the allocation {self.name}")
        scope = scope or (scope_of(model, tokens) if self.needs_text else Scope())
        self.check_scope(scope)
        make = self.measure(model, float(sparsity), tokens=tokens, scope=scope)
        return Prepared(make, self.settings)

    @abstractmethod
    def measure(
        self, model: nn.Module, sparsity: float, *, tokens: Tensor | None, scope: Scope
    ) -> Make:
        """Do everything slow; the arguments are those of ``prepare`` after its checks."""

    def check_budget(self, sparsity: float) -> None:
        """Raise PruneError if no model can be pruned to this sparsity by the rule."""
        highest = presets.SPARSITY_BOUNDS[1]
        if check_sparsity(sparsity) > highest:
            raise PruneError(
                f"{self.name} prunes at most {highest:g} of a layer, so that {sparsity:g} of all "
                "weights is out of reach: use uniform, or a lower sparsity"
            )

    def check_scope(self, scope: Scope) -> None:
        """Raise PruneError if the rule cannot work with this scope; by default every rule can."""


class FixedAllocator(Allocator):
    """An allocator without a setting."""

    @property
    def settings(self) -> tuple[Setting, ...]:
        """None: there is nothing to choose."""
        return ()


def check_eps(eps: object) -> float:
    """Return eps as a float; PruneError unless it is a number in [0, 1]."""
    if isinstance(eps, bool) or not isinstance(eps, Real) or not 0 <= float(eps) <= 1:
        raise PruneError(f"eps must be a number from 0 to 1, not {eps!r}")
    return float(eps)


def layers_by_unit(model: nn.Module, scope: Scope) -> dict[str, dict[str, int]]:
    """Return the number of weights of every layer in scope, by block and by layer."""
    return _by_unit(scope.cover(module_source(model, fingerprint=False)).layers)


def _by_unit(layers: Iterable[Layer]) -> dict[str, dict[str, int]]:
    """Return the number of weights of every layer, by block and by layer."""
    found: dict[str, dict[str, int]] = {}
    for layer in layers:
        found.setdefault(unit_of(layer.name) or layer.name, {})[layer.name] = layer.numel
    return found


def weights_in(model: nn.Module, scope: Scope) -> list[Weight]:
    """Return the weights of the layers in scope, in the model's order.

    Raises:
        PruneError: one of them cannot be written, or is not finite.

    """
    source = module_source(model, fingerprint=False)
    found = weights_of(model, source, {layer.name for layer in scope.cover(source).layers})
    # A number that comes from NaN would give all blocks one ratio.
    check_finite(found)
    return found


def sizes_of(layers: Mapping[str, Mapping[str, int]]) -> Array:
    """Return the number of weights of every block: a budget is a mean over weights."""
    return np.array([sum(block.values()) for block in layers.values()], dtype=np.float64)


def make_allocation(
    model: nn.Module,
    ratios: Mapping[str, float],
    sparsity: float,
    rule: dict[str, Any],
    scope: Scope,
) -> Allocation:
    """Return an allocation that uses no alpha. ``ratios`` are those of blocks or of layers."""
    source = module_source(model)
    covered = scope.cover(source)
    return Allocation(
        target="sparsity",
        budget=float(sparsity),
        settings=rule,
        shares=tuple(
            # A layer with a ratio of its own is its own unit.
            LayerValue(name, ratios[name], name, None, numel)
            if name in ratios
            else LayerValue(name, ratios[unit], unit, None, numel)
            for unit, layers in _by_unit(covered.layers).items()
            for name, numel in layers.items()
        ),
        left_out=covered.left_out,
        notes=covered.notes,
        source=source.label,
        fingerprint=source.fingerprint,
    )
