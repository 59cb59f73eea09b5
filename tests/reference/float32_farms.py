"""The published procedure in the precision it was run in: every step in float32, as torch computes
it.

Not right, only faithful: it tells how far rounding alone moves a published number, where the
goldens hold no float64 value beside it. Best xmin that are near ties, and eigenvalues on a bin's
edge, are decided by the last bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Fit32(NamedTuple):
    """Alpha and KS distance as float32 gives them."""

    alpha: float
    ks: float


def eigenvalues32(
    matrices: Tensor, shape: tuple[int, int], corners: list[tuple[int, int]]
) -> Tensor:
    """Pooled squared singular values of all windows, ascending, one float32 SVD each."""
    rows, cols = shape
    pooled = [
        torch.linalg.svdvals(matrix[top : top + rows, left : left + cols].float()) ** 2
        for top, left in corners
        for matrix in matrices
    ]
    return torch.sort(torch.cat(pooled)).values


def fit32(eigenvalues: Tensor, cutoff: str, *, bins: int = 100) -> Fit32:
    """Fit by ``median``, ``ks`` or ``peak`` (with the published lower bound in log10)."""
    logs = torch.log(eigenvalues)
    if cutoff == "median":
        return _fit(eigenvalues, logs, eigenvalues.numel() // 2)
    lowest, highest = _peak_bounds(eigenvalues, bins) if cutoff == "peak" else (-math.inf, math.inf)
    best = Fit32(math.nan, math.inf)
    for start in range(eigenvalues.numel() - 1):
        xmin = eigenvalues[start]
        if xmin < lowest:
            continue
        if xmin > highest:
            break
        fit = _fit(eigenvalues, logs, start)
        if fit.ks < best.ks:
            best = fit
    return best


def _peak_bounds(eigenvalues: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    logs = torch.log10(eigenvalues)
    low, high = float(logs.min()), float(logs.max())
    counts = torch.histc(logs, bins, min=low, max=high)
    edges = torch.linspace(low, high, bins + 1)
    peak = 10 ** edges[int(torch.argmax(counts))]
    return torch.log10(0.95 * peak), 1.5 * peak


def _fit(eigenvalues: Tensor, logs: Tensor, start: int) -> Fit32:
    tail = eigenvalues[start:]
    n = tail.numel()
    alpha = 1 + n / (logs[start:].sum() - n * logs[start])
    below = torch.arange(n, dtype=torch.float32) / n
    distance = (1 - (tail / tail[0]) ** (1 - alpha) - below).abs().max()
    return Fit32(float(alpha), float(distance))
