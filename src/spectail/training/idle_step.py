"""Recognise a step that trains nothing, which checkpointing makes to initialise an optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def does_nothing(optimizer: torch.optim.Optimizer) -> bool:
    """Whether all rates and all gradients are zero, so that the step does not train anything.

    ``torch.distributed.checkpoint`` makes such a step to initialise an optimizer's state. A rate on
    an accelerator counts as above zero, because reading it would make every step wait.
    """
    if any(
        _on_accelerator(rate) or bool(rate)
        for rate in (group.get("lr", 1.0) for group in optimizer.param_groups)
    ):
        return False
    gradients = (
        p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    )
    # All processes must come to the same answer about a gradient that is spread over them.
    return not any(
        g.is_sparse or bool((g.full_tensor() if hasattr(g, "full_tensor") else g).any())
        for g in gradients
    )


def _on_accelerator(rate: Any) -> bool:
    return isinstance(rate, Tensor) and rate.device.type != "cpu"
