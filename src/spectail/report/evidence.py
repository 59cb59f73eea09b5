"""Statistics on the alphas of a run: which differences exceed their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from spectail.results.depth import RankCorrelation, alpha_with_depth, block_alphas, depths
from spectail.results.records import LayerRecord, Results

CLEAR = 2.0
"""A difference of at most this many combined standard errors is not called a difference."""


@dataclass(frozen=True)
class Run:
    """The layers of a run, grouped by what can be said about them."""

    results: Results
    ok: tuple[LayerRecord, ...]
    """Measured layers with a finite alpha."""
    ranked: tuple[LayerRecord, ...]
    """Those of ``ok`` that are comparable, lowest alpha first."""

    @property
    def not_comparable(self) -> tuple[LayerRecord, ...]:
        """Measured layers whose window is not that of the run."""
        return tuple(layer for layer in self.ok if not layer.comparable)

    @property
    def without_error(self) -> tuple[LayerRecord, ...]:
        """Measured layers without an error bar."""
        return tuple(layer for layer in self.ok if not math.isfinite(layer.alpha_se))

    def count(self, status: str) -> int:
        """Count the layers of this status."""
        return sum(layer.status == status for layer in self.results.layers)


def sort_run(results: Results) -> Run:
    """Group the run's layers by what can be said about them."""
    ok = tuple(x for x in results.layers if x.status == "ok" and math.isfinite(x.alpha))
    return Run(results, ok, tuple(sorted((x for x in ok if x.comparable), key=lambda x: x.alpha)))


def threshold(comparisons: int) -> float:
    """Return how many standard errors the largest of so many differences must exceed.

    It is the two-sided 5 % level of a normal distribution, with Bonferroni's correction for the
    number of comparisons, and at least ``CLEAR``.
    """
    return max(CLEAR, -NormalDist().inv_cdf(0.025 / max(1, comparisons)))


@dataclass(frozen=True)
class KindMean:
    """Mean alpha of one kind of layer, with its standard error."""

    kind: str
    n: int
    """Number of layers."""
    mean: float
    error: float
    """The larger of the scatter between layers and the error of measurement."""


def kind_means(layers: Sequence[LayerRecord], at_least: int = 3) -> list[KindMean]:
    """Return the means of all kinds that have ``at_least`` layers, lowest mean first."""
    means = []
    for kind in dict.fromkeys(layer.kind for layer in layers):
        alphas = np.array([layer.alpha for layer in layers if layer.kind == kind])
        if alphas.size < at_least:
            continue
        errors = np.array([layer.alpha_se for layer in layers if layer.kind == kind])
        measured = float(np.sqrt(np.nansum(errors**2))) / alphas.size
        # Layers of a kind may differ for reasons of their own: the larger error is the safe one.
        scatter = float(alphas.std(ddof=1)) / math.sqrt(alphas.size)
        means.append(KindMean(kind, int(alphas.size), float(alphas.mean()), max(scatter, measured)))
    return sorted(means, key=lambda x: x.mean)


@dataclass(frozen=True)
class Trend:
    """How the alphas of the blocks go with depth, after subtracting the mean of each kind."""

    correlation: RankCorrelation
    change: float
    """Mean alpha of the last third of the blocks minus that of the first third."""


def depth_trend(layers: Sequence[LayerRecord]) -> Trend | None:
    """Return the trend over blocks; None where ``alpha_with_depth`` has no number."""
    correlation = alpha_with_depth(layers)
    if correlation is None:
        return None
    alphas = block_alphas(layers)
    depth = depths(alphas)
    along = np.array([alphas[unit] for unit in sorted(alphas, key=depth.__getitem__)])
    third = max(1, along.size // 3)
    return Trend(correlation, float(along[-third:].mean() - along[:third].mean()))


def odd_ones(layers: Sequence[LayerRecord], at_least: int = 6) -> list[tuple[LayerRecord, float]]:
    """Return layers far from the median of their kind, with that median, the farthest first.

    Far means both: more than four robust standard deviations of the kind (1.4826 x the median
    absolute deviation, which is the standard deviation of a normal distribution), and more standard
    errors of the layer than ``threshold`` of the number of layers.
    """
    far: list[tuple[float, LayerRecord, float]] = []
    for kind in dict.fromkeys(layer.kind for layer in layers):
        mine = [layer for layer in layers if layer.kind == kind]
        if len(mine) < at_least:
            continue
        alphas = np.array([layer.alpha for layer in mine])
        middle = float(np.median(alphas))
        spread = 1.4826 * float(np.median(np.abs(alphas - middle)))
        for layer in mine:
            gap = abs(layer.alpha - middle)
            if gap > 4 * spread and gap > threshold(len(layers)) * layer.alpha_se:
                # Kinds differ in spread: the farthest is the one farthest in units of its kind.
                far.append((gap / spread if spread else math.inf, layer, middle))
    return [(layer, middle) for _, layer, middle in sorted(far, key=lambda x: -x[0])]
