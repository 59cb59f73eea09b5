"""The rules that are compared: the cost of giving a layer a width, which the solver sums up.

The size of an allocation is the sum over layers of the real bits of their integers, scales
included. All rules share the solver and the budget; they differ in the cost alone. An exponent or
factor of each is chosen on selection text among three candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spectail.allocation.knapsack import choose
from spectail.core.quantisers import Integers

Array = NDArray[np.float64]

WIDTHS = (2, 3, 4, 5, 6, 8)
"""The choices of every layer: integers in groups of 128, whose scales take 0.25 bits more."""


@dataclass(frozen=True)
class Layers:
    """Parallel arrays over the layers of a model, in its order."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    block: NDArray[np.int64]
    shapes: tuple[tuple[int, int], ...]
    variance: Array
    errors: Array
    """Relative squared error t^2 (layers, widths)."""
    alpha: Array
    """In the default windows."""
    alphaq: Array
    """In AlphaQ's windows of 128, by the largest tenth of the eigenvalues."""
    sensitivity: Array | None = None
    """Growth of the loss per t^2, measured with noise."""

    @property
    def numel(self) -> Array:
        """Number of weights of each layer."""
        return np.array([rows * cols for rows, cols in self.shapes], dtype=np.float64)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bits (layers, widths) with scales."""
        return np.array([[Integers(b).storage(*shape) for b in WIDTHS] for shape in self.shapes])

    @property
    def more_bits(self) -> NDArray[np.bool_]:
        """Whether llama.cpp's rule gives a block more bits.

        That is ``use_more_bits`` in llama-quant.cpp.
        """
        n, i = int(self.block.max()) + 1, self.block
        result: NDArray[np.bool_] = (i < n // 8) | (i >= 7 * n // 8) | ((i - n // 8) % 3 == 2)
        return result


Cost = Callable[[Layers, float], Array]
"""Costs (layers, widths), and with which candidate."""


@dataclass(frozen=True)
class Rule:
    """A cost, and what is tried for it on selection text."""

    meaning: str
    cost: Cost
    candidates: tuple[float, ...]


def four(layers: Layers) -> Array:
    """4^-bits, the error that a width is assumed to have, (layers, widths)."""
    return np.broadcast_to(4.0 ** -np.array(WIDTHS, dtype=float), layers.errors.shape)


def _spread(layers: Layers) -> Array:
    """A tie-break for layers of equal cost per weight: far less than any difference.

    Without it the solver would narrow the first or the last layers of the model. The golden ratio
    spreads them evenly over the depth, so that a mixture of two widths says nothing about depth.
    """
    golden = (np.sqrt(5) - 1) / 2
    result: Array = 1 + 1e-6 * ((np.arange(len(layers.names)) * golden) % 1.0)
    return result


def _uniform(layers: Layers, _: float) -> Array:
    return (layers.numel * _spread(layers))[:, None] * four(layers)


def _llama_cpp(layers: Layers, bits: float) -> Array:
    """V and down projections of the blocks that llama.cpp favours, by so many bits."""
    favoured = layers.more_bits & np.isin(layers.kinds, ("v", "down"))
    return _uniform(layers, 0.0) * np.where(favoured, 4.0**bits, 1.0)[:, None]


def _alphaq(layers: Layers, gamma: float) -> Array:
    return _variance(layers, 1.0) * _low(layers.alphaq, gamma)


def _variance(layers: Layers, power: float) -> Array:
    return (layers.numel * layers.variance**power)[:, None] * four(layers)


def _relative(layers: Layers, power: float) -> Array:
    return layers.numel[:, None] ** power * layers.errors


def _size(layers: Layers, power: float) -> Array:
    return layers.numel[:, None] ** power * four(layers)


def _mean_error(layers: Layers, power: float) -> Array:
    return np.asarray(layers.numel[:, None] ** power * layers.errors.mean(axis=0))


def _absolute(layers: Layers, power: float) -> Array:
    return (layers.numel * layers.variance)[:, None] ** power * layers.errors


def _alpha(layers: Layers, gamma: float) -> Array:
    return _relative(layers, 0.0) * _low(layers.alpha, gamma)


def _first(layers: Layers, factor: float) -> Array:
    return _relative(layers, 0.0) * np.where(layers.block == 0, factor, 1.0)[:, None]


def _noise(layers: Layers, power: float) -> Array:
    if layers.sensitivity is None:
        raise ValueError("measure the sensitivities first")
    return layers.sensitivity[:, None] ** power * layers.errors


def _low(alpha: Array, gamma: float) -> Array:
    return ((np.median(alpha) / alpha) ** gamma)[:, None]


RULES: dict[str, Rule] = {
    "uniform": Rule("one width; a mixture spread over depth in between", _uniform, (0.0,)),
    "relative error": Rule("numel^p t^2", _relative, (0.0, -0.5, 0.5)),
    "the default": Rule("t^2, as spectail allocate does without text", _relative, (0.0,)),
    "size alone": Rule("numel^p 4^-b, no weights read", _size, (0.0, -0.5, 0.5)),
    "size, mean error": Rule("numel^p t^2, the mean of all layers", _mean_error, (0.0, -0.5, 0.5)),
    "variance": Rule("numel Var(W)^p 4^-b", _variance, (0.25, 0.5, 1.0)),
    "AlphaQ": Rule("numel Var(W) (alpha0 / alpha)^g 4^-b", _alphaq, (1.0, 3.0, 10.0)),
    "llama.cpp": Rule("its rule, for v and down, by so many bits", _llama_cpp, (0.5, 1.0, 2.0)),
    "first block": Rule("t^2, the first block times a factor", _first, (2.0, 4.0, 16.0)),
    "error and alpha": Rule("(alpha0 / alpha)^g t^2", _alpha, (1.0, 2.0, 5.0)),
    "absolute error": Rule("(numel Var(W))^p t^2", _absolute, (0.25, 0.5, 1.0)),
    "error and noise": Rule("a^p t^2, a measured with noise", _noise, (0.5, 0.75, 1.0)),
}
"""By name; all but the uniform one and the default have the same number of candidates."""


def widths(layers: Layers, rule: str, candidate: float, budget: int) -> dict[str, int]:
    """Return the width of each layer at the size of the uniform width ``budget`` or just below."""
    sizes = layers.sizes
    limit = int(sizes[:, WIDTHS.index(budget)].sum())
    picks, _ = choose(RULES[rule].cost(layers, candidate), sizes, limit)
    return {name: WIDTHS[pick] for name, pick in zip(layers.names, picks, strict=True)}


def real_bits(layers: Layers, chosen: Mapping[str, int]) -> float:
    """Mean bits per weight, scales included."""
    picks = [WIDTHS.index(chosen[name]) for name in layers.names]
    return float(layers.sizes[np.arange(len(picks)), picks].sum() / layers.numel.sum())
