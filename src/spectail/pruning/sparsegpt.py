"""SparseGPT (arXiv 2301.00774): prune from left to right, and let the weights not yet visited make up for the loss.

The loss of a layer is the squared change of its outputs, quadratic in each row with the Hessian X
X^T, the same for all rows. With U the upper Cholesky factor of its inverse, removing weight j costs
w_j^2 / U_jj^2, and the best answer of the weights to its right is -w_j / U_jj * U_j (optimal brain
surgeon on the columns from j on).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectail.errors import PruneError
from spectail.pruning.masks import smallest, smallest_of_groups
from spectail.pruning.quotas import Pattern, Quota, Zeros

MOST_DAMPING = 100.0
"""Ten thousand times the published damping: a Hessian that needs more says nothing."""


@dataclass(frozen=True)
class Repaired:
    """Pruned weights, which of them are zero, and the damping that was needed."""

    weights: Tensor
    mask: Tensor
    damping: float


def sparsegpt(
    weights: Tensor, gram: Tensor, quota: Quota, *, block_size: int = 128, damping: float = 0.01
) -> Repaired:
    """Prune ``weights`` (rows, cols) given ``gram`` = X X^T (cols, cols); both float32 or both float64, unchanged.

    The mask is chosen per ``block_size`` columns over all rows, on weights that earlier blocks have
    updated, with an exact total; for a pattern per group of m columns. ``damping`` is the part of
    the mean diagonal that is added to the diagonal, raised tenfold as often as needed. Inputs that
    never fired cost nothing: they are pruned first, and those that stay are left as they are.

    Raises:
        PruneError: no damping up to 100 makes the Hessian positive definite.

    """
    dead = gram.diagonal() == 0
    factor, damping = _inverse_factor(gram, dead, damping)
    work = weights.clone()
    mask = torch.zeros(work.shape, dtype=torch.bool, device=work.device)
    for left, right in _column_blocks(work.shape[1], quota, block_size):
        block = slice(left, right)
        share = _block_quota(quota, work.shape, left, right)
        errors = _prune_columns(
            work[:, block], mask[:, block], factor[block, block], dead[block], share
        )
        work[:, right:] -= errors @ factor[block, right:]
    return Repaired(work, mask, damping)


def _inverse_factor(gram: Tensor, dead: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper Cholesky factor of the inverse of the damped Hessian, and the damping that it took."""
    typical = gram.diagonal()[~dead].mean() if not bool(dead.all()) else gram.new_ones(())
    while damping <= MOST_DAMPING:
        hessian = gram.clone()
        hessian.diagonal()[dead] = typical
        hessian.diagonal().add_(damping * typical)
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed) and bool(torch.isfinite(upper).all()):
                return upper, damping
        damping = max(10 * damping, 1e-3)
    raise PruneError(
        f"the Hessian is not positive definite, not even with damping {MOST_DAMPING:g}"
    )


def _column_blocks(cols: int, quota: Quota, block_size: int) -> list[tuple[int, int]]:
    """Ranges of columns; no group of a pattern is cut, and what is left over at the end is not pruned."""
    stop = cols
    if isinstance(quota, Pattern):
        block_size = max(1, block_size // quota.m) * quota.m
        stop = cols // quota.m * quota.m
    return [(left, min(left + block_size, stop)) for left in range(0, stop, block_size)]


def _block_quota(quota: Quota, shape: torch.Size, left: int, right: int) -> Quota:
    """A block's share of the zeros: in proportion to its columns, so that the sum is exact."""
    if isinstance(quota, Pattern):
        return quota
    return Zeros(quota.count * right // shape[1] - quota.count * left // shape[1])


def _prune_columns(
    work: Tensor, mask: Tensor, factor: Tensor, dead: Tensor, quota: Quota
) -> Tensor:
    """Prune one block in place, column by column; returns the errors (rows, columns of the block) to pass on."""
    diagonal = factor.diagonal()
    errors = torch.zeros_like(work)
    if isinstance(quota, Zeros):
        mask[:] = smallest(_cost(work, diagonal, dead), quota.count)
    for j in range(work.shape[1]):
        if isinstance(quota, Pattern) and j % quota.m == 0:
            group = slice(j, j + quota.m)
            mask[:, group] = smallest_of_groups(
                _cost(work[:, group], diagonal[group], dead[group]), quota.n, quota.m
            )
        errors[:, j] = (
            torch.where(mask[:, j], work[:, j], torch.zeros_like(work[:, j])) / diagonal[j]
        )
        work[:, j + 1 :] -= errors[:, j, None] * factor[j, j + 1 :]
        work[:, j].masked_fill_(mask[:, j], 0)
    return errors


def _cost(weights: Tensor, diagonal: Tensor, dead: Tensor) -> Tensor:
    """What removing each weight costs, (w / U_jj)^2."""
    return (weights / diagonal).square().masked_fill(dead, 0)
