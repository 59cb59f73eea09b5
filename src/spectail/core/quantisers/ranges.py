"""One number of a layer from which the error of every width follows: the range of its groups."""

from __future__ import annotations

import math

from torch import Tensor

GROUP = 128
"""Neighbours along the inputs that share a range, as in ``Integers``."""


def group_range(matrices: Tensor, sum_of_squares: float) -> float:
    """Return the mean squared range of groups of weights, over the mean square of the weights.

    ``matrices`` is (..., rows, cols), and ``sum_of_squares`` that of all its entries. A range is
    largest minus least weight of a group. Groups count by their number of weights. The result is
    NaN for zeros alone and for complex weights.

    >>> import torch
    >>> group_range(torch.tensor([[1.0, -1.0, 1.0, -1.0]]), 4.0)
    4.0
    """
    if matrices.is_complex() or not sum_of_squares > 0:
        return math.nan
    # Slices in place of padding: a padded copy would take the memory of the layer again.
    whole = matrices.shape[-1] // GROUP * GROUP
    parts: list[Tensor] = [matrices[..., :whole].unflatten(-1, (-1, GROUP))] if whole else []
    parts += [matrices[..., whole:]] if whole < matrices.shape[-1] else []
    return sum(part.shape[-1] * _squared_ranges(part) for part in parts) / sum_of_squares


def _squared_ranges(groups: Tensor) -> float:
    """Return the sum of the squared ranges along the last axis."""
    low, high = groups.aminmax(dim=-1)
    return float((high.double() - low.double()).square().sum())
