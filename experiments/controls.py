"""Controls for learning rates by alpha.

The same factors, given to the layers without regard to alpha. If a rule by alpha trains better than
one rate, the cause may be its factors alone: their mean, the unrest that different rates bring, or
where they lie in depth. A control keeps the factors that alpha's map gives in every round of
measuring and gives them out by another order (``ByDepth``, ``Shuffled``, ``ShuffledOnce``), or
gives all layers their mean (``Constant``), or those of one kind (``ByKind``).
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import spectail as st
from spectail.allocation.targets import LearningRate
from spectail.allocation.units import Array, Units
from spectail.training.rules import Rule


class Arrangement(Protocol):
    """A way to give factors to layers.

    A frozen dataclass, whose text is part of the rule's settings.
    """

    def arranged(self, factors: Array, names: tuple[str, ...]) -> Array:
        """Return the factors of the layers ``names``.

        They are made from those that alpha's map gives these layers.
        """


@dataclass(frozen=True)
class ByDepth:
    """The same factors in the order of depth.

    The smallest goes to the first layer if ``rising``, else to the last.
    """

    order: tuple[str, ...]
    """Names of all layers in the order in which they run, as ``depth_order`` returns them."""
    rising: bool

    def arranged(self, factors: Array, names: tuple[str, ...]) -> Array:
        """Sort the factors along the depth of the layers."""
        by_depth = sorted(range(len(names)), key=lambda i: self.order.index(names[i]))
        found = np.empty_like(factors)
        found[by_depth] = np.sort(factors) if self.rising else np.sort(factors)[::-1]
        return found


@dataclass(frozen=True)
class Shuffled:
    """The same factors in a random order, another one in every round of measuring."""

    seed: int

    def arranged(self, factors: Array, names: tuple[str, ...]) -> Array:
        """Permute the factors."""
        # A rule has no state and does not know the round. The factors themselves differ from round
        # to round, so they are the rest of the seed, and a resumed run draws the same orders.
        draw = np.random.default_rng([self.seed, zlib.crc32(factors.tobytes())])
        return draw.permutation(factors)


@dataclass(frozen=True)
class ShuffledOnce:
    """Every layer gets the factor of another layer, in all rounds that of the same one."""

    seed: int

    def arranged(self, factors: Array, names: tuple[str, ...]) -> Array:
        """Permute the factors."""
        return factors[np.random.default_rng(self.seed).permutation(len(factors))]


@dataclass(frozen=True)
class ByKind:
    """The mean factor of its kind for every layer: alpha tells kinds apart, but not their layers.

    Layers are of one kind if their names differ in numbers only.
    """

    def arranged(self, factors: Array, names: tuple[str, ...]) -> Array:
        """Return the mean over the layers of the same kind for each."""
        kinds = np.array([re.sub(r"\d+", "#", name) for name in names])
        return np.array([factors[kinds == kind].mean() for kind in kinds])


@dataclass(frozen=True)
class Constant:
    """The mean of the factors for every layer.

    The arithmetic mean, because to first order a step of SGD or Adam lowers the loss by a
    sum over layers that is linear in their rates. It is also the mean factor of each layer
    over all shuffles. The geometric mean would be smaller, and the control would train
    slower than what it controls.
    """

    def arranged(self, factors: Array, names: tuple[str, ...]) -> Array:
        """Return the mean for each."""
        return np.full_like(factors, factors.mean())


@dataclass(frozen=True, kw_only=True)
class ArrangedRates(LearningRate):
    """Learning rates whose factors are arranged after alpha's map has given them."""

    arrangement: Arrangement

    def values(self, units: Units, budget: float) -> tuple[Array, tuple[str, ...]]:
        """Return the arranged values; the sentences about alpha's map do not apply."""
        values, _ = super().values(units, budget)
        return self.arrangement.arranged(values, units.names), ()


@dataclass(frozen=True, kw_only=True)
class Control(Rule):
    """A rule by alpha with its factors arranged anew; made by ``control_of``."""

    name = "control"
    option = "lr"
    target = LearningRate

    arrangement: Arrangement

    def scaling(self) -> ArrangedRates:
        """Return the target that maps alphas to factors and arranges them."""
        return ArrangedRates(
            map=self.map, level=self.level, normalize=self.normalize, arrangement=self.arrangement
        )

    def settings(self) -> dict[str, Any]:
        """Return the rule as plain JSON values, the arrangement as its text."""
        return {**super().settings(), "arrangement": repr(self.arrangement)}


def control_of(rule: st.TempBalance | st.TBSigmoid, arrangement: Arrangement) -> Control:
    """Return a control that has all settings of ``rule``: the same layers, measurements and map."""
    given = {field.name: getattr(rule, field.name) for field in fields(rule)}
    return Control(**given, arrangement=arrangement)


def depth_order(network: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Return the names of the network's modules in the order in which a forward pass enters them.

    The order of ``named_modules`` will not do: an FNO lists all its spectral layers
    before all its skip connections.
    """
    entered: dict[str, None] = {}

    def enter(name: str, *_: object) -> None:
        entered.setdefault(name)

    hooks = [
        module.register_forward_pre_hook(partial(enter, name))
        for name, module in network.named_modules()
    ]
    training = network.training
    with torch.no_grad():
        network.eval()(example)
    network.train(training)
    for hook in hooks:
        hook.remove()
    return tuple(entered)
