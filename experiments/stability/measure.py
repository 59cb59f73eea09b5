"""One layer under every window, placement and cutoff.

The eigenvalues of a window are computed once and fitted often.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spectail.core.cutoffs import Cutoff, HistogramPeak, KSMinimum, Median, TopFraction
from spectail.core.jackknife import alpha_standard_error
from spectail.core.spectra import numerical_zeros, window_eigenvalues
from spectail.core.tails import fit_from
from spectail.core.windows import MIN_BANDS, Window, disjoint_bands, parse_placement
from spectail.models.source import Layer

Array: TypeAlias = NDArray[np.float64]

CUTOFFS: dict[str, Cutoff] = {
    "median": Median(),
    "top:0.75": TopFraction(0.75),
    "top:0.25": TopFraction(0.25),
    "top:0.1": TopFraction(0.1),
    "top:0.05": TopFraction(0.05),
    "ks": KSMinimum(),
    "peak": HistogramPeak(),
    "peak, published": HistogramPeak(legacy_lower_bound=True),
}
SEARCHING = ("ks", "peak", "peak, published")
"""Cutoffs that fit many tails: their jackknife is taken at the common window only."""
HALVES = ("tile, black", "tile, white")
"""The two colours of a chessboard of tiles: two measurements that share no
weight where tiles do not overlap."""


@dataclass(frozen=True)
class Settings:
    """What is varied. ``placements`` are (text, seed)."""

    sides: tuple[int, ...] = (64, 96, 128)
    placements: tuple[tuple[str, int], ...] = (
        ("tile", 0),
        ("grid:5", 0),
        ("grid:7", 0),
        ("random:25", 0),
        ("random:25", 1),
    )
    every: int = 1
    """Every how many blocks of SmolLM2 are measured."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"cutoffs": {name: repr(cutoff) for name, cutoff in CUTOFFS.items()}}


def placement_name(text: str, seed: int) -> str:
    """How results call a placement."""
    return f"{text} seed {seed}" if text.startswith("random") else text


def measure_layer(layer: Layer, common: int, settings: Settings) -> dict[str, Any]:
    """Alphas by window side, placement and cutoff, with what they cost.

    Also standard errors, seconds per fit and the number of windows. The number of windows.

    A side that does not fit is left out. Placements that put the windows where an earlier one
    has them all are left out too: they would agree by construction.
    """
    matrices = layer.read()
    sides = sorted({common, common // 2, *settings.sides})
    found = {
        str(side): _one_side(matrices, side, settings, search=side == common)
        for side in sides
        if side <= min(layer.rows, layer.cols)
    }
    return {"rows": layer.rows, "cols": layer.cols, "n_matrices": layer.n_matrices, "sides": found}


def _one_side(matrices: Tensor, side: int, settings: Settings, *, search: bool) -> dict[str, Any]:
    window = Window(side, side)
    shape = (matrices.shape[1], matrices.shape[2])
    alphas: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    n_windows: dict[str, int] = {}
    seen: set[frozenset[tuple[int, int]]] = set()
    for text, seed in settings.placements:
        positions = parse_placement(text).positions(*shape, window, seed)
        if frozenset(positions) in seen:
            continue
        seen.add(frozenset(positions))
        name = placement_name(text, seed)
        begun = time.perf_counter()
        found = window_eigenvalues(matrices, window, positions)
        seconds[f"eigenvalues, {name}"] = time.perf_counter() - begun
        n_windows[name] = found.shape[0] * found.shape[1]
        alphas[name], taken = _fits(pooled(found, window))
        if name == "tile":
            seconds |= taken
            halves = {
                half: pooled(found[[*colour]], window)
                for half, colour in _chessboard(positions).items()
            }
            alphas |= {half: _fits(values)[0] for half, values in halves.items()}
    return {
        "alpha": alphas,
        "se": _errors(matrices, window, search=search),
        "seconds": seconds,
        "windows": n_windows,
    }


def pooled(found: Array, window: Window) -> Array:
    """All eigenvalues above numerical zero, ascending."""
    return np.sort(found[~numerical_zeros(found, window)])


def _fits(values: Array) -> tuple[dict[str, float], dict[str, float]]:
    """Alpha and seconds of every cutoff."""
    alphas, seconds = {}, {}
    for name, cutoff in CUTOFFS.items():
        begun = time.perf_counter()
        alphas[name] = float(f"{fit_from(values, cutoff.start(values)).alpha:.6g}")
        seconds[name] = time.perf_counter() - begun
    return alphas, seconds


def _chessboard(positions: Sequence[tuple[int, int]]) -> Mapping[str, list[int]]:
    """Numbers of the windows of each colour; nothing where there are fewer than four windows."""
    if len(positions) < 4:
        return {}
    tops = {top: i for i, top in enumerate(sorted({top for top, _ in positions}))}
    lefts = {left: i for i, left in enumerate(sorted({left for _, left in positions}))}
    colour = [(tops[top] + lefts[left]) % 2 for top, left in positions]
    return {
        half: [i for i, c in enumerate(colour) if c == wanted] for wanted, half in enumerate(HALVES)
    }


def _errors(matrices: Tensor, window: Window, *, search: bool) -> dict[str, float]:
    """``alpha_se`` of each cutoff, on the disjoint windows that spectail takes.

    They cover at most a third of the layer.
    """
    rows, cols = matrices.shape[1:]
    side = min(window.rows, rows // MIN_BANDS, cols // MIN_BANDS)
    smaller = Window(side, side)
    tops, lefts = disjoint_bands(rows, side), disjoint_bands(cols, side)
    found = window_eigenvalues(matrices, smaller, [(top, left) for top in tops for left in lefts])
    found = found.reshape(len(tops), len(lefts), *found.shape[1:])
    zero = numerical_zeros(found, smaller)
    names = [name for name in CUTOFFS if search or name not in SEARCHING]
    errors = {name: alpha_standard_error(found, zero, CUTOFFS[name]) for name in names}
    return {
        name: float(f"{error:.4g}") if math.isfinite(error) else math.nan
        for name, error in errors.items()
    }
