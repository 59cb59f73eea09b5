"""Scores: how much each weight matters; the smallest are pruned. Matrices are (output, input)."""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude(weights: Tensor) -> Tensor:
    """|W|, of shape (rows, cols)."""
    return weights.abs()


def wanda(weights: Tensor, squares: Tensor) -> Tensor:
    """|W_ij| sqrt(s_j), s_j the sum of squares of input feature j (Wanda, arXiv 2306.11695, equation 1).

    ``weights`` is (rows, cols), ``squares`` (cols,). A common factor of ``squares`` (their mean
    over samples, as in the published code) changes no mask.
    """
    return weights.abs() * squares.sqrt()


def removal_share(scores: Tensor) -> Tensor:
    """The part of its row's score that is lost once this weight and all smaller ones of the row are gone, in [0, 1].

    Wanda's variant prunes where this is at most a threshold, one for the whole matrix; equal scores
    of a row are taken from the left. A row of zeros loses nothing.
    """
    ordered, order = torch.sort(scores, dim=1, stable=True)
    lost = ordered.double().cumsum(dim=1)
    total = lost[:, -1:]
    share = torch.where(total > 0, lost / total, torch.zeros_like(lost))
    return torch.empty_like(share).scatter_(1, order, share)
