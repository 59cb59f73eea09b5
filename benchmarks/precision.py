"""What float32 does to alpha on the demo's layers, and what can be proved about it afterwards.

Every fifth layer of SmolLM2, in tiles of the default window, cutoff ``median``. The Gram matrix and
its eigenvalues are computed in float64 and in float32. By Weyl's inequality no eigenvalue is off by
more than the norm of the error matrix. For that norm stands ``2 * side * eps * largest`` here: the
usual size of the rounding errors of product and solver, not even their worst case.
"""

from __future__ import annotations

import argparse
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

import spectail as st
from spectail.core.cutoffs import Median
from spectail.core.tails import fit_from
from spectail.core.windows import Tile, Window
from spectail.measuring.planning import make_plan

Array: TypeAlias = NDArray[np.float64]
EPS = float(np.finfo(np.float32).eps)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--every", type=int, default=5, help="measure one layer in so many")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Return the median and the largest change of alpha, and of the bound, over the layers."""
    plan = make_plan("demo", spec=st.presets.FARMS)
    side = int(plan.run.window or 0)
    # The first layer is the embedding, thirty times as large as the others.
    layers = plan.layers[1 : 3 if options.quick else None : options.every]
    found = [compare(layer.read()[0], side) for layer in layers]
    changes, bounds, lost = (np.array(column) for column in zip(*found, strict=True))
    return {
        "layers": len(layers),
        "relative change of alpha": _spread(changes),
        "bound on it": _spread(bounds),
        "share of eigenvalues below float32's rounding": _spread(lost),
    }


def compare(matrix: torch.Tensor, side: int) -> tuple[float, float, float]:
    """Return the relative change of alpha, the bound on it, and the share of lost eigenvalues."""
    rows, cols = matrix.shape
    corners = Tile().positions(rows, cols, Window(side, side))
    windows = torch.stack([matrix[r : r + side, c : c + side].float() for r, c in corners])
    exact, short = (_eigenvalues(windows.to(kind)) for kind in (torch.float64, torch.float32))
    alpha, other = (_alpha(values) for values in (exact, short))
    rounding = EPS * side * exact[:, -1:]
    return (
        abs(other / alpha - 1),
        _bound(exact, 2 * rounding, alpha),
        float((exact < rounding).mean()),
    )


def _eigenvalues(windows: torch.Tensor) -> Array:
    found: Array = torch.linalg.eigvalsh(windows @ windows.mT).double().numpy()
    return found


def _alpha(values: Array) -> float:
    pooled = np.sort(values, axis=None)
    return fit_from(pooled, Median().start(pooled)).alpha


def _bound(values: Array, error: Array, alpha: float) -> float:
    """Return how far alpha can move, to first order, if each eigenvalue moves by its ``error``.

    alpha - 1 is one over the mean of ln(x / xmin); x moves by its own error, and xmin, an order
    statistic of the pool, by no more than the largest.
    """
    pooled, errors = values.ravel(), np.broadcast_to(error, values.shape).ravel()
    order = np.argsort(pooled)
    tail = order[Median().start(pooled) :]
    xmin = pooled[tail[0]]
    mean = float((errors[tail] / pooled[tail]).mean() + errors.max() / xmin)
    return (alpha - 1) ** 2 * mean / alpha


def _spread(values: Array) -> dict[str, float]:
    return {"median": float(np.median(values)), "largest": float(values.max())}
