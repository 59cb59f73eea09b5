"""Masks: choose the weights with the smallest scores. True means pruned.

Scores are finite and of shape (rows, cols); rows are the outputs. Counts are exact. Of equal scores
the first in reading order is pruned first.
"""

from __future__ import annotations

import torch
from torch import Tensor


def smallest(scores: Tensor, count: int) -> Tensor:
    """Mask the ``count`` smallest scores of the whole matrix.

    >>> smallest(torch.tensor([[1.0, 2.0], [1.0, 1.0]]), 2)
    tensor([[ True, False],
            [ True, False]])
    """
    flat = scores.reshape(-1)
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=scores.device)
    if count > 0:
        # kthvalue needs no full sort of what may be 10^8 scores.
        last = torch.kthvalue(flat, count).values
        mask = flat < last
        # Fill up from the ties in order; topk would pick among equal scores in no defined order.
        ties = (flat == last).nonzero().squeeze(1)
        mask[ties[: count - int(mask.sum())]] = True
    return mask.reshape(scores.shape)


def smallest_by_row(scores: Tensor, count: int) -> Tensor:
    """Mask the smallest scores of every row, ``count // rows`` or one more in each row.

    The total is ``count``. The rows that lose one more are those whose next score is smallest.
    """
    rows = scores.shape[0]
    each, more = divmod(count, rows)
    # Stable: of equal scores the left one is pruned first, on every device.
    ordered, order = torch.sort(scores, dim=1, stable=True)
    take = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    take[:, :each] = True
    if more:
        # Column ``each`` of the sorted scores holds the next weight of every row.
        take[torch.sort(ordered[:, each], stable=True).indices[:more], each] = True
    return torch.empty_like(take).scatter_(1, order, take)  # from sorted order back to columns


def smallest_of_groups(scores: Tensor, n: int, m: int) -> Tensor:
    """Mask the ``n`` smallest of every ``m`` neighbours in a row.

    Columns at the end that do not fill a group stay.
    """
    rows, cols = scores.shape
    whole = cols // m * m
    # (rows, groups, m): a group is m neighbours in one row.
    groups = scores[:, :whole].reshape(rows, -1, m)
    order = torch.sort(groups, dim=2, stable=True).indices
    taken = torch.zeros(groups.shape, dtype=torch.bool, device=scores.device).scatter_(
        2, order[..., :n], True
    )
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    mask[:, :whole] = taken.reshape(rows, whole)
    return mask
