"""The published procedure as plainly as it can be said.

Every other benchmark is compared with it. FARMS (arXiv 2506.06280): windows on a grid, one SVD per
window, one after the other, squared, pooled; then a power-law fit, where KS cutoffs try every xmin
in a Python loop. Written from the formulas, independently of spectail. In float32 as published, or
in float64. An eigenvalue is a squared singular value; corners are (top, left).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

BINS = 100
"""Bins of the log10 histogram whose peak the ``peak`` cutoff looks at."""


class Tail(NamedTuple):
    """p(x) ~ x^-alpha from xmin up."""

    alpha: float
    xmin: float
    ks: float
    n_tail: int


def grid_corners(
    shape: tuple[int, int], window: tuple[int, int], per_side: int
) -> list[tuple[int, int]]:
    """``per_side`` x ``per_side`` windows with the published floor stride, row by row."""
    tops, lefts = (
        range(0, extent - size + 1, max(1, (extent - size) // max(1, per_side - 1)))[:per_side]
        for extent, size in zip(shape, window, strict=True)
    )
    return [(top, left) for top in tops for left in lefts]


def pooled_eigenvalues(
    matrix: Tensor, window: tuple[int, int], corners: Iterable[tuple[int, int]]
) -> Tensor:
    """Squared singular values of all windows of one matrix, ascending.

    They are computed in the matrix's precision.
    """
    rows, cols = window
    pooled = []
    for top, left in corners:
        singular = torch.linalg.svdvals(matrix[top : top + rows, left : left + cols])
        pooled.append(singular**2)
    return torch.sort(torch.cat(pooled)).values


def fit(eigenvalues: Tensor, cutoff: str, *, every: int = 1, log_lower_bound: bool = False) -> Tail:
    """The tail by ``median``, ``top:F``, ``peak`` or ``ks``.

    ``peak`` and ``ks`` take the least KS distance; with ``every`` they try one
    candidate in so many, which tells how long all of them would take.
    ``log_lower_bound``: see ``peak_candidates``.
    """
    total = len(eigenvalues)
    if cutoff == "median":
        return tail_from(eigenvalues, total // 2)
    if cutoff.startswith("top:"):
        return tail_from(eigenvalues, total - max(1, int(float(cutoff[4:]) * total + 0.5)))
    return scan(
        eigenvalues, candidates(eigenvalues, cutoff, log_lower_bound=log_lower_bound)[::every]
    )


def candidates(eigenvalues: Tensor, cutoff: str, *, log_lower_bound: bool = False) -> range:
    """Indices of the xmin that a scan tries: all but the last for ``ks``.

    None where the cutoff is no scan.
    """
    if cutoff == "peak":
        return peak_candidates(eigenvalues, log_lower_bound=log_lower_bound)
    return range(len(eigenvalues) - 1) if cutoff == "ks" else range(0)


def peak_candidates(eigenvalues: Tensor, *, log_lower_bound: bool = False) -> range:
    """Those from 0.95 to 1.5 times the peak of the log10 histogram.

    The published lower bound is log10(0.95 peak), compared with the eigenvalues
    themselves: ``log_lower_bound``.
    """
    logs = torch.log10(eigenvalues).double()
    counts, edges = torch.histogram(logs, BINS)
    middle = 10.0 ** float(edges[int(torch.argmax(counts))])
    low = math.log10(0.95 * middle) if log_lower_bound else 0.95 * middle
    first = int((eigenvalues < low).sum())
    last = int((eigenvalues <= 1.5 * middle).sum())
    return range(first, min(last, len(eigenvalues) - 1))


def scan(eigenvalues: Tensor, candidates: Iterable[int]) -> Tail:
    """The candidate xmin with the least KS distance.

    A loop over them all, each with its whole tail.
    """
    logs = torch.log(eigenvalues)
    best = Tail(math.nan, math.nan, math.inf, 0)
    for start in candidates:
        tail = tail_from(eigenvalues, start, logs)
        if tail.alpha > 1 and tail.ks < best.ks:
            best = tail
    return best


def every_within(evaluations: float, eigenvalues: Tensor, candidates: range) -> int:
    """The least ``every`` for which a scan looks at no more than so many values.

    The scan tries one in ``every`` candidates.
    """
    total = len(candidates) * (len(eigenvalues) - (candidates.start + candidates.stop) / 2)
    return max(1, math.ceil(total / evaluations))


def quickest_threads(work: Callable[[], Any]) -> int:
    """One torch thread or all of them, whichever does this work sooner here.

    Small work only waits for the second.
    """
    threads = torch.get_num_threads()
    times: dict[int, float] = {}
    for count in (threads, 1, threads, 1):
        torch.set_num_threads(count)
        started = time.perf_counter()
        work()
        times[count] = min(time.perf_counter() - started, times.get(count, math.inf))
    torch.set_num_threads(threads)
    return min(times, key=lambda count: times[count])


def tail_from(eigenvalues: Tensor, start: int, logs: Tensor | None = None) -> Tail:
    """The fit from index ``start`` up, and its KS distance.

    alpha = 1 + n / (sum ln x - n ln xmin).
    """
    logs = torch.log(eigenvalues) if logs is None else logs
    n, xmin = len(eigenvalues) - start, eigenvalues[start]
    alpha = float(1 + n / (torch.sum(logs[start:]) - n * logs[start]))
    model = 1 - (eigenvalues[start:] / xmin) ** (1 - alpha)
    distance = float(torch.max(torch.abs(model - torch.arange(n, dtype=logs.dtype) / n)))
    return Tail(alpha, float(xmin), distance, n)
