"""Scores: how much each weight matters. The smallest are pruned. Matrices are (outputs, inputs)."""

from __future__ import annotations

import torch
from torch import Tensor

from spectail.errors import PruneError


def magnitude(weights: Tensor) -> Tensor:
    """Return |W|, of shape (rows, cols)."""
    return weights.abs()


def wanda(weights: Tensor, squares: Tensor) -> Tensor:
    """Return Wanda's scores |W_ij| sqrt(s_j) (arXiv 2306.11695, equation 1).

    ``weights`` is (rows, cols). ``squares`` is (cols,) and holds s_j, the sum of squares of input
    feature j. The published code takes a mean over samples instead; a common factor of all s_j
    changes no mask.

    Raises:
        PruneError: a score is infinite: such scores would be ranked by their place alone.

    """
    found = weights.abs() * squares.sqrt()
    if not bool(torch.isfinite(found).all()):
        dtype = str(found.dtype).removeprefix("torch.")
        raise PruneError(
            f"|W| times the norm of its inputs is beyond {dtype}: exclude it, or prune by magnitude"
        )
    return found


def removal_share(scores: Tensor) -> Tensor:
    """Return which part of a row's total score goes when a weight and all smaller ones go.

    Values lie in [0, 1]. Wanda's variant prunes each weight whose value is at most a threshold that
    holds for the whole matrix. Equal scores in a row go from left to right. A row of zeros loses
    nothing.
    """
    ordered, order = torch.sort(scores, dim=1, stable=True)
    # Sums of thousands of float32 scores would be too coarse to tell neighbours apart.
    lost = ordered.double().cumsum(dim=1)
    total = lost[:, -1:]
    share = torch.where(total > 0, lost / total, torch.zeros_like(lost))
    return torch.empty_like(share).scatter_(1, order, share)
