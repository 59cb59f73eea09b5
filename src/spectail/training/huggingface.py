"""A Balancer for the Trainer of transformers.

Use it as ``Trainer(..., callbacks=[BalancerCallback("tempbalance", every=100)])``.

Its state is stored in ``trainer_state.json`` of every checkpoint and taken up again by
``resume_from_checkpoint``.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from spectail.training.balancer import Balancer
from spectail.training.rules import Rule, as_rule

EPOCH = "epoch"


class BalancerCallback(TrainerCallback, ExportableState):
    """Builds a Balancer when training begins and removes it at the end; ``balancer`` holds it.

    ``every`` is a number of optimizer steps, or ``epoch``: measured at the end of each epoch.
    ``options`` are those of ``Balancer``. With several processes all of them share the layers out.
    """

    def __init__(
        self, rule: Rule | str | dict[str, Any], *, every: int | str = EPOCH, **options: Any
    ) -> None:
        self.rule, self.every, self.options = as_rule(rule), every, options
        self.balancer: Balancer | None = None
        self.stored: dict[str, Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Build the Balancer, and give it its state where training goes on from a checkpoint."""
        if self.balancer is not None:
            self.balancer.remove()
        group = dist.group.WORLD if dist.is_initialized() and args.world_size > 1 else None
        options = {"group": group, **self.options}
        every: Any = None if self.every == EPOCH else self.every
        self.balancer = Balancer(
            more["model"], more["optimizer"], self.rule, every=every, **options
        )
        kept = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        stored = kept["attributes"]["stored"] if isinstance(kept, dict) else self.stored
        if stored is not None and state.global_step:
            self.balancer.load_state_dict(stored)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Measure, where that is done once per epoch."""
        if self.every == EPOCH and self.balancer is not None:
            self.balancer.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Take the Balancer off; its history stays."""
        if self.balancer is not None:
            self.balancer.remove()

    def state(self) -> dict[str, Any]:
        """What the Trainer stores with a checkpoint."""
        stored = self.balancer.state_dict() if self.balancer is not None else None
        settings = {"rule": self.rule.settings(), "every": self.every}
        plain = {
            key: value for key, value in self.options.items() if key in ("background", "device")
        }
        return {"args": settings | plain, "attributes": {"stored": stored}}
