"""One number of a layer from which the error of every width follows: the range of its groups."""

from __future__ import annotations

import math

from torch import Tensor

from spectail.core.bands import Bands
from spectail.core.quantisers.base import sampled_rows

GROUP = 128
"""Neighbours along the inputs that share a range, as in ``Integers``."""


def group_range(matrices: Tensor | Bands) -> float:
    """Return the mean squared range of groups of weights, over the mean square of the weights.

    ``matrices`` is (..., rows, cols); ``sampled_rows`` stand for them. A range is largest minus
    least weight of a group. Groups count by their number of weights. The result is NaN for zeros
    alone and for complex weights.

    >>> import torch
    >>> group_range(torch.tensor([[1.0, -1.0, 1.0, -1.0]]))
    4.0
    """
    if matrices.dtype.is_complex:
        return math.nan
    rows = sampled_rows(matrices).double()
    # Relative to the largest weight, so that no square overflows or vanishes.
    rows = rows / (float(rows.abs().amax()) or 1.0)
    total = float(rows.square().sum())
    # The last group of a row may be short.
    whole = rows.shape[1] // GROUP * GROUP
    parts: list[Tensor] = [rows[:, :whole].unflatten(1, (-1, GROUP))] if whole else []
    parts += [rows[:, whole:]] if whole < rows.shape[1] else []
    ranges = sum(part.shape[-1] * _squared_ranges(part) for part in parts)
    return ranges / total if total > 0 else math.nan


def _squared_ranges(groups: Tensor) -> float:
    """Return the sum of the squared ranges along the last axis."""
    low, high = groups.aminmax(dim=-1)
    return float((high - low).square().sum())
