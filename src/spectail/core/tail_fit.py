"""The result of measuring one layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.windows import Window

Array: TypeAlias = NDArray[np.float64]

NO_WINDOW = Window(0, 0)


@dataclass(frozen=True, kw_only=True)
class TailFit:
    """The result of measuring one layer.

    Numbers that could not be measured are NaN, and ``status`` and ``reason`` say why.
    """

    alpha: float = math.nan
    alpha_se: float = math.nan
    """Standard error of alpha by the jackknife in ``core.jackknife``."""
    xmin: float = math.nan
    ks: float = math.nan
    n_tail: int = 0
    status: str = "ok"
    """``ok``, ``skipped`` (too small to measure) or ``failed`` (NaN, infinite, all zero, or no
    tail)."""
    reason: str = ""
    eigenvalues: Array = field(default_factory=lambda: np.empty(0), repr=False)
    """All pooled eigenvalues above numerical zero, ascending."""
    n_zero: int = 0
    left_out: Array = field(default_factory=lambda: np.empty(0), repr=False)
    """The ``n_zero`` eigenvalues that take no part in the fit, ascending; some may be negative by
    rounding."""
    rank: int = 0
    """Number of eigenvalues that are not zero within rounding, over all windows."""
    rank_loss: int = 0
    """Number of eigenvalues that are zero within rounding, counted window by window."""
    n_windows: int = 0
    window: Window = NO_WINDOW
    alpha_null: float = math.nan
    alpha_null_sd: float = math.nan
    weight_var: float = math.nan
    sum_of_squares: float = math.nan
    """Sum of the squared weights, which equals the sum of all eigenvalues of the whole matrices."""
