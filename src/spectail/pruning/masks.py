"""Masks: which weights go. True is pruned; counts are exact, and ties go to the first in reading order.

Scores are (rows, cols) with rows the outputs, finite, and the smallest are pruned.
"""

from __future__ import annotations

import torch
from torch import Tensor


def smallest(scores: Tensor, count: int) -> Tensor:
    """The ``count`` smallest of the whole matrix.

    >>> smallest(torch.tensor([[1.0, 2.0], [1.0, 1.0]]), 2)
    tensor([[ True, False],
            [ True, False]])
    """
    flat = scores.reshape(-1)
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=scores.device)
    if count > 0:
        last = torch.kthvalue(flat, count).values
        mask = flat < last
        ties = (flat == last).nonzero().squeeze(1)
        mask[ties[: count - int(mask.sum())]] = True
    return mask.reshape(scores.shape)


def smallest_by_row(scores: Tensor, count: int) -> Tensor:
    """The smallest of every row, ``count`` in total: each row loses ``count // rows`` or one more.

    The odd ones go to the rows whose next weight has the smallest score.
    """
    rows = scores.shape[0]
    each, more = divmod(count, rows)
    ordered, order = torch.sort(scores, dim=1, stable=True)
    take = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    take[:, :each] = True
    if more:
        take[torch.sort(ordered[:, each], stable=True).indices[:more], each] = True
    return torch.empty_like(take).scatter_(1, order, take)


def smallest_of_groups(scores: Tensor, n: int, m: int) -> Tensor:
    """The ``n`` smallest of every ``m`` neighbours along the input; columns left over at the end stay."""
    rows, cols = scores.shape
    whole = cols // m * m
    groups = scores[:, :whole].reshape(rows, -1, m)
    order = torch.sort(groups, dim=2, stable=True).indices
    taken = torch.zeros(groups.shape, dtype=torch.bool, device=scores.device).scatter_(
        2, order[..., :n], True
    )
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    mask[:, :whole] = taken.reshape(rows, whole)
    return mask
