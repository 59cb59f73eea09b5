"""SparseGPT (arXiv 2301.00774): prune column by column and correct the columns to the right.

The loss of a layer is the squared change of its outputs. It is quadratic in each row of weights,
with the Hessian X X^T, which is the same for all rows. Let U be the upper Cholesky factor of the
inverse Hessian. Removing weight j costs w_j^2 / U_jj^2, and adding -w_j / U_jj * U_j to the weights
on its right keeps the loss smallest (optimal brain surgeon on the columns from j on).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectail.basics.checks import check_whole
from spectail.errors import PruneError
from spectail.pruning.masks import smallest, smallest_of_groups
from spectail.pruning.methods.base import UNSEEN, Method, Outcome
from spectail.pruning.methods.magnitude import Magnitude
from spectail.pruning.quotas import Pattern, Quota, Zeros
from spectail.pruning.statistics import Gram, Statistic

MOST_DAMPING = 100.0
"""The highest damping tried, ten thousand times the published one: a Hessian that needs more holds
no information."""


@dataclass(frozen=True)
class SparseGPT(Method):
    """Prune by the Hessian of the inputs, and update the weights that stay to reduce the loss."""

    name = "sparsegpt"
    meaning = (
        "weights went that the Hessian of the layer's inputs makes cheap, and those that stay were "
        "updated to make up for them."
    )
    statistic = Gram

    block_size: int = 128
    """Columns that share one choice of the mask."""
    damping: float = 0.01
    """Part of the mean diagonal of the Hessian that is added to the diagonal."""

    def __post_init__(self) -> None:
        check_whole(PruneError, block_size=self.block_size)
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise PruneError(f"damping must be a finite number of at least 0, not {self.damping!r}")

    def apply(self, weights: Tensor, quota: Quota, seen: Statistic | None = None) -> Outcome:
        """Prune a float matrix (rows, cols) given the Gram matrix of its inputs."""
        # An expert that got no token has a Hessian of zeros.
        if not isinstance(seen, Gram) or not seen.tokens:
            outcome = Magnitude().apply(weights, quota)
            return Outcome(outcome.mask, note=UNSEEN)
        # 2 / tokens, the factor of the published Hessian, cancels: damping is relative to its mean.
        gram = seen.total.to(weights.dtype)
        done = sparsegpt(weights, gram, quota, block_size=self.block_size, damping=self.damping)
        raised = (
            f"the Hessian is not positive definite: damping raised from {self.damping:g} "
            f"to {done.damping:g}"
        )
        return Outcome(done.mask, done.weights, raised if done.damping > self.damping else "")


@dataclass(frozen=True)
class Repaired:
    """The result of ``sparsegpt``: weights, mask (True where pruned) and the damping needed."""

    weights: Tensor
    mask: Tensor
    damping: float


def sparsegpt(
    weights: Tensor, gram: Tensor, quota: Quota, *, block_size: int = 128, damping: float = 0.01
) -> Repaired:
    """Prune ``weights`` (rows, cols) given ``gram`` = X X^T (cols, cols).

    Both are float32 or both float64, and neither is changed. The mask is chosen for ``block_size``
    columns at a time over all rows, on weights that earlier blocks have updated, and the total is
    exact; under a pattern it is chosen for each group of m columns. ``damping`` is the part of the
    mean diagonal that is added to the diagonal; it is raised tenfold until the Hessian is positive
    definite. Weights of inputs that were always zero cost nothing: they are pruned first, and those
    that stay keep their value.

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
        # The updates of one block are applied to all later columns at once: one large product is
        # much faster than one rank-1 update per column, and gives the same weights up to rounding.
        work[:, right:] -= errors @ factor[block, right:]
    return Repaired(work, mask, damping)


def _inverse_factor(gram: Tensor, dead: Tensor, damping: float) -> tuple[Tensor, float]:
    """Return the upper Cholesky factor of the inverse damped Hessian, and the damping needed."""
    # The mean over inputs that fired: many dead ones would pull it towards 0.
    typical = gram.diagonal()[~dead].mean() if not bool(dead.all()) else gram.new_ones(())
    while damping <= MOST_DAMPING:
        hessian = gram.clone()
        # A zero on the diagonal would make the matrix singular. The columns of dead inputs are
        # otherwise zero, so any positive value leaves the other columns unaffected.
        hessian.diagonal()[dead] = typical
        hessian.diagonal().add_(damping * typical)
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not int(failed):
            # The factor of the inverse holds, in row j, what the updates from column j on need.
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed) and bool(torch.isfinite(upper).all()):
                return upper, damping
        # A damping of 0 is allowed to begin with, and ten times 0 would not grow.
        damping = max(10 * damping, 1e-3)
    raise PruneError(
        f"the Hessian is not positive definite, not even with damping {MOST_DAMPING:g}"
    )


def _column_blocks(cols: int, quota: Quota, block_size: int) -> list[tuple[int, int]]:
    """Split the columns into (left, right) ranges of about ``block_size``.

    Under a pattern no group is cut in two, and columns that do not fill a group are left out.
    """
    stop = cols
    if isinstance(quota, Pattern):
        # Rounded down to whole groups, at least one.
        block_size = max(1, block_size // quota.m) * quota.m
        stop = cols // quota.m * quota.m
    return [(left, min(left + block_size, stop)) for left in range(0, stop, block_size)]


def _block_quota(quota: Quota, shape: torch.Size, left: int, right: int) -> Quota:
    """Return the quota of one block of columns: zeros in proportion to its width."""
    if isinstance(quota, Pattern):
        return quota
    # The difference of two rounded running totals: over all blocks they sum to the count exactly.
    return Zeros(quota.count * right // shape[1] - quota.count * left // shape[1])


def _prune_columns(
    work: Tensor, mask: Tensor, factor: Tensor, dead: Tensor, quota: Quota
) -> Tensor:
    """Prune one block of columns in place, from left to right.

    Returns the errors (rows, columns of the block), which the caller applies to later columns.
    """
    diagonal = factor.diagonal()
    errors = torch.zeros_like(work)
    if isinstance(quota, Zeros):
        # Chosen before the first column of the block is pruned, as published.
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
        # Row j of U, scaled by the error, is the best correction of the columns to the right.
        work[:, j + 1 :] -= errors[:, j, None] * factor[j, j + 1 :]
        work[:, j].masked_fill_(mask[:, j], 0)
    return errors


def _cost(weights: Tensor, diagonal: Tensor, dead: Tensor) -> Tensor:
    """Return the cost of removing each weight, (w / U_jj)^2, and 0 for dead inputs."""
    return (weights / diagonal).square().masked_fill(dead, 0)
