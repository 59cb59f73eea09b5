"""The numbers that are asked for the faulty layer, measured with spectail's own functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from spectail import presets
from spectail.core.farms import tail_of
from spectail.core.measure import FARMS, PUBLISHED, measure
from spectail.core.metrics import entropy
from spectail.core.spec import Spec
from spectail.core.tail_fit import TailFit


@dataclass(frozen=True)
class Number:
    """A number of a layer, and how it is judged.

    It has the side on which theory expects a bad layer, and says whether to take its logarithm.
    """

    worse: int
    log: bool = False


NUMBERS: Mapping[str, Number] = {
    "alpha, windows": Number(1),
    "alpha, windows, top 10 %": Number(1),
    "alpha, whole, median": Number(1),
    "alpha, whole, peak": Number(1),
    "alpha, whole, KS": Number(1),
    "null_z": Number(1),
    "stable rank": Number(1, log=True),
    "entropy": Number(1),
    "Var(W)": Number(-1, log=True),
    "largest eigenvalue": Number(-1, log=True),
}
"""Heavy-tailed self-regularization expects a badly trained layer to look more like a random
one: light tails (high alpha, null_z near 0), a flat spectrum (high stable rank and
entropy), small weights that did not grow.
"""
OF_WINDOWS = ("alpha, windows", "alpha, windows, top 10 %", "null_z")
"""Numbers that depend on the window of the run."""


def measure_windows(matrices: Tensor, window: int) -> dict[str, float]:
    """The numbers of OF_WINDOWS for one layer at the run's common window.

    Its shape is (n, rows, cols).
    """
    fit = measure(matrices, presets.FARMS, window)
    error = math.hypot(fit.alpha_se, fit.alpha_null_sd)
    tail = _alpha(fit, presets.FARMS_TAIL)
    values = (fit.alpha, tail, (fit.alpha - fit.alpha_null) / error if error else math.nan)
    return dict(zip(OF_WINDOWS, map(_short, values), strict=True))


def measure_all(matrices: Tensor, window: int, *, convolution: bool) -> dict[str, float]:
    """All numbers of one layer, shape (n, rows, cols); NaN for one that cannot be measured."""
    whole = FARMS.whole(matrices, presets.FULL)
    weights = matrices.double()
    squares, largest = float(weights.square().sum()), float(np.max(whole.eigenvalues))
    return measure_windows(matrices, window) | {
        "alpha, whole, median": _short(_alpha(whole, presets.FULL)),
        "alpha, whole, peak": _short(_published_peak(matrices, whole, convolution)),
        "alpha, whole, KS": _short(_alpha(whole, presets.WEIGHTWATCHER)),
        "stable rank": _short(squares / largest),
        "entropy": _short(entropy(whole.eigenvalues)),
        "Var(W)": _short(float(weights.var(correction=0))),
        "largest eigenvalue": _short(largest),
    }


def _published_peak(matrices: Tensor, whole: TailFit, convolution: bool) -> float:
    """Alpha as AlphaPruning's code gives it, which keeps numerical zeros."""
    if whole.n_zero:
        fit = measure(matrices, presets.ALPHAPRUNING, convolution=convolution, error_bar=False)
        return fit.alpha
    # Without zeros the eigenvalues known already are the same, and the slow SVD is not needed.
    factor = PUBLISHED.convolution_factor if convolution else 1.0
    return tail_of(factor * whole.eigenvalues, presets.ALPHAPRUNING.cutoff).alpha


def _alpha(fit: TailFit, spec: Spec) -> float:
    """Alpha of the same eigenvalues at another cutoff.

    NaN where ``analyze`` finds the tail too small.
    """
    tail = tail_of(fit.eigenvalues, spec.cutoff)
    return tail.alpha if tail.n_tail >= spec.cutoff.min_tail else math.nan


def _short(value: float) -> float:
    """Six digits are more than any of the numbers is sure of, and keep the files small."""
    return float(f"{value:.6g}")
