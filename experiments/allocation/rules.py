"""The rules that are compared: from what was measured to a ratio of zeros per layer.

Every rule gives each block a score, and a higher score means a higher ratio. One map turns scores
into ratios, from 1 - eps to 1 + eps times the sparsity, and the mean over all weights is exact. So
the rules differ in their scores alone. OWL, DLP and DSA keep the map that they were published with,
which spans as much. Global, LAMP and ER have no eps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from spectail import presets
from spectail.allocation.budgets import fill, shift
from spectail.allocation.depth import FORMS, depth_scores
from spectail.allocation.maps import Linear
from spectail.allocation.scores import standardized, with_kept
from spectail.core.spec import Spec
from spectail.pruning.allocators.by_activations import falling_ratios
from spectail.pruning.allocators.by_shape import erdos_renyi

Array = NDArray[np.float64]

SPECS: dict[str, Spec] = {
    "whole, peak": presets.ALPHAPRUNING,
    "published windows": presets.FARMS_LLM,
    "median": presets.FARMS,
    "tail": presets.FARMS_TAIL,
}
"""How alpha is measured."""

ACTIVATIONS = ("owl", "dlp", "dsa")
"""What is measured of the inputs: higher numbers are kept."""
FIXED = ("global", "lamp")
"""Ratios per layer without an eps."""


@dataclass(frozen=True)
class Layer:
    """One layer that is pruned."""

    name: str
    unit: str
    kind: str
    rows: int
    cols: int

    @property
    def numel(self) -> int:
        """The number of its weights."""
        return self.rows * self.cols


@dataclass(frozen=True)
class Measured:
    """Everything a rule may look at."""

    layers: tuple[Layer, ...]
    alphas: Mapping[str, Mapping[str, float]]
    """By spec, then by layer."""
    variances: Mapping[str, float]
    """Var(W) by layer."""
    blocks: Mapping[str, Mapping[str, float]]
    """The numbers of ``ACTIVATIONS`` by block."""
    fixed: Mapping[str, Mapping[str, float]]
    """The ratios of ``FIXED`` by layer."""

    @property
    def units(self) -> list[str]:
        """The blocks, in order of depth."""
        return list(dict.fromkeys(layer.unit for layer in self.layers))

    def mean(self, values: Mapping[str, float]) -> Array:
        """The plain mean of the layers' values by block."""
        found: dict[str, list[float]] = {}
        for layer in self.layers:
            found.setdefault(layer.unit, []).append(values[layer.name])
        return np.array([np.mean(found[unit]) for unit in self.units])

    def alpha(self, spec: str) -> Array:
        """The mean alpha by block."""
        return self.mean(self.alphas[spec])

    def tail(self) -> Array:
        """The tail's alpha by block, every alpha compared within its kind of layer only."""
        alphas = self.alphas["tail"]
        scores: dict[str, float] = {}
        for kind in {layer.kind for layer in self.layers}:
            names = [layer.name for layer in self.layers if layer.kind == kind]
            scores |= dict(zip(names, z(np.array([alphas[n] for n in names])), strict=True))
        return self.mean(scores)

    def variance(self) -> Array:
        """Minus the logarithm of the mean variance by block: large weights are kept."""
        return -np.log(self.mean(self.variances))

    def depth(self) -> Array:
        """From 0 at the first block to 1 at the last."""
        return depth_scores(self.units, "rising")

    def activations(self, name: str) -> Array:
        """A number by block, high where less is kept."""
        return -np.array([self.blocks[name][unit] for unit in self.units])


z = standardized


def keep_first(values: Array) -> Array:
    """Put the first block at the low end, and the others into the upper half of the range."""
    return with_kept(values, np.arange(values.size) == 0)


def keep_ends(values: Array) -> Array:
    """The same with the first and the last block."""
    place = np.arange(values.size)
    return with_kept(values, (place == 0) | (place == values.size - 1))


def smoothed(values: Array) -> Array:
    """Savitzky-Golay over depth: windows of at most 7 blocks, degree 2 (LayerIF smooths so)."""
    window = min(7, values.size - (values.size + 1) % 2)
    return np.asarray(savgol_filter(values, window, 2)) if window > 2 else values


def residual(values: Array, depth: Array) -> Array:
    """What a straight line over depth leaves of values."""
    slope, height = np.polyfit(depth, values, 1)
    return np.asarray(values - slope * depth - height)


Score = Callable[[Measured], Array]

DEPTH: dict[str, Score] = {
    f"depth: {form}": lambda m, form=form: depth_scores(m.units, form)  # type: ignore[misc]
    for form in FORMS
}
"""Rules that read no weights."""

ALPHA: dict[str, Score] = {
    "AlphaPruning": lambda m: m.alpha("whole, peak"),
    "FARMS as published": lambda m: m.alpha("published windows"),
    "FARMS default": lambda m: m.alpha("median"),
    "farms-tail": Measured.tail,
}
"""Rules by alpha as they stand."""

TRIALS: dict[str, Score] = {
    "Var(W)": Measured.variance,
    "tail + Var(W)": lambda m: z(m.tail()) + z(m.variance()),
    "first, Var(W)": lambda m: keep_first(m.variance()),
    "first, OWL": lambda m: keep_first(m.activations("owl")),
    "first, FARMS default": lambda m: keep_first(m.alpha("median")),
    "first, tail": lambda m: keep_first(m.tail()),
    "first, tail + Var(W)": lambda m: keep_first(z(m.tail()) + z(m.variance())),
    "ends, Var(W)": lambda m: keep_ends(m.variance()),
    "ends, OWL": lambda m: keep_ends(m.activations("owl")),
    "ends, FARMS default": lambda m: keep_ends(m.alpha("median")),
    "ends, tail": lambda m: keep_ends(m.tail()),
    "ends, tail + Var(W)": lambda m: keep_ends(z(m.tail()) + z(m.variance())),
    "tail, smoothed": lambda m: smoothed(m.tail()),
    "first, tail smoothed": lambda m: keep_first(smoothed(m.tail())),
    "rising + residual of tail": lambda m: z(m.depth()) + z(residual(m.tail(), m.depth())),
    "falling + residual of tail": lambda m: z(-m.depth()) + z(residual(m.tail(), m.depth())),
}
"""Attempts to do better, and the same attempts without alpha."""


def with_offsets(form: str) -> str:
    """Return the name of the rule that gives a form of depth the offsets of kinds."""
    return f"{'ends' if form == 'first-last' else form}, offsets"


DEPTH_KIND: dict[str, Score] = {
    with_offsets(form): score for form, score in zip(FORMS, DEPTH.values(), strict=True)
}
"""The forms of depth, with offsets: ``--allocation depth-kind``."""

WITH_OFFSETS: dict[str, Score] = {
    "offsets alone": lambda m: np.ones(len(m.units)),
    **DEPTH_KIND,
    "tail, offsets": Measured.tail,
    "first, tail, offsets": lambda m: keep_first(m.tail()),
    "ends, tail, offsets": lambda m: keep_ends(m.tail()),
}
"""Scores whose ratios differ between kinds of layers by ``presets.KIND_OFFSETS``."""

SCORES = DEPTH | ALPHA | TRIALS | WITH_OFFSETS
CONTROLS = ("uniform", *DEPTH, *ACTIVATIONS, *FIXED, "er")
RULES = (*CONTROLS, *ALPHA, *TRIALS, *WITH_OFFSETS)
"""All rules, controls first."""
WITHOUT_EPS = ("uniform", *FIXED, "er", "offsets alone")
READS_NO_WEIGHTS = ("uniform", *DEPTH, "er", "offsets alone", *DEPTH_KIND)


def ratios(rule: str, eps: float | None, sparsity: float, measured: Measured) -> dict[str, float]:
    """Return the ratio of every layer; their mean over all weights is ``sparsity``."""
    layers = measured.layers
    names = [layer.name for layer in layers]
    if rule == "uniform":
        return dict.fromkeys(names, sparsity)
    if rule in FIXED:
        return {name: measured.fixed[rule][name] for name in names}
    if rule == "er":
        shapes = np.array([(layer.rows, layer.cols) for layer in layers], dtype=np.float64)
        return dict(zip(names, map(float, erdos_renyi(shapes, sparsity)), strict=True))
    by_block = dict(zip(measured.units, _blocks(rule, eps or 0.0, sparsity, measured), strict=True))
    if rule not in WITH_OFFSETS:
        return {layer.name: float(by_block[layer.unit]) for layer in layers}
    offsets = presets.KIND_OFFSETS[min(presets.KIND_OFFSETS, key=lambda s: abs(s - sparsity))]
    wanted = np.array([by_block[layer.unit] + offsets.get(layer.kind, 0.0) for layer in layers])
    numel = np.array([layer.numel for layer in layers], dtype=np.float64)
    found = shift(wanted, numel, budget=sparsity, bounds=presets.SPARSITY_BOUNDS)
    return dict(zip(names, map(float, found), strict=True))


def _blocks(rule: str, eps: float, sparsity: float, measured: Measured) -> Array:
    """Return the ratio of every block."""
    sizes = dict.fromkeys(measured.units, 0.0)
    for layer in measured.layers:
        sizes[layer.unit] += layer.numel
    numel = np.array(list(sizes.values()))
    if rule in ACTIVATIONS:
        kept = -measured.activations(rule)
        return falling_ratios(kept, numel, sparsity=sparsity, lam=eps * sparsity)
    factors = Linear(1 - eps, 1 + eps).factors(SCORES[rule](measured))
    return fill(factors, numel, budget=sparsity, bounds=presets.SPARSITY_BOUNDS)
