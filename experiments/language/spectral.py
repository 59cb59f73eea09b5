"""Muon and HTMuon with an exact singular value decomposition.

Both replace the momentum M = U S V^T of a matrix by U S^p V^T: p = 0 is Muon, p = 0.125 is HTMuon
(arXiv 2603.10067), p = 1 is the momentum itself. At toy size the decomposition takes about half as
long as forward and backward pass. A fast version for p = 1/8 needs matrix products alone:
(M M^T)^(-7/16) M, from three square roots and an inverse square root by Newton-Schulz iterations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

RMS = 0.2
"""Root mean square of an update at rate 1: about that of AdamW, so that one rate serves both."""


def with_power(matrix: Tensor, power: float) -> Tensor:
    """U S^power V^T of a matrix (rows, columns), scaled to a root mean square of RMS.

    For power 0 this is Muon's factor ``0.2 sqrt(max(rows, columns))``. A matrix of zeros stays so.
    """
    if not torch.isfinite(matrix).all():
        # The decomposition raises; a run that has diverged ends as it does with AdamW.
        return torch.full_like(matrix, torch.nan)
    if not matrix.any():
        return matrix
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    # Relative values: the scale cancels below, and small gradients must not underflow.
    update: Tensor = left * (values / values[0]) ** power @ right
    return update.mul_(RMS / update.square().mean().sqrt())


class SpectralPower(torch.optim.Optimizer):
    """Nesterov momentum with the singular values to a power, and decoupled weight decay.

    Every update has the same root mean square, so that optimizers of two powers differ in the
    shape of the spectrum alone. (The published code scales nothing for HTMuon, so that its
    steps shrink a little with the gradient.)
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        power: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        options = {"lr": lr, "power": power, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        if closure is not None:
            raise TypeError("SpectralPower takes no closure: call backward before step")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        mean = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = with_power(torch.lerp(gradient, mean, group["momentum"]), group["power"])
        weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])
