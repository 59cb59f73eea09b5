"""A callback with a Balancer for the Trainer of transformers.

Use it as ``Trainer(..., callbacks=[BalancerCallback("tempbalance", every=100)])``. Its state is
stored in ``trainer_state.json`` of every checkpoint, and ``resume_from_checkpoint`` restores it.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from spectail.training.balancer import Balancer
from spectail.training.epochs import EPOCH, EndOfEpoch
from spectail.training.rules import Rule, as_rule


class BalancerCallback(EndOfEpoch, TrainerCallback, ExportableState):
    """Builds a Balancer when training begins and removes it at the end; ``balancer`` holds it.

    ``every`` is a number of optimizer steps, or ``epoch`` to measure at the end of each epoch.
    ``options`` are passed on to ``Balancer``. Several processes share the measuring of the layers.
    """

    def __init__(
        self, rule: Rule | str | dict[str, Any], *, every: int | str = EPOCH, **options: Any
    ) -> None:
        self.rule, self.every, self.options = as_rule(rule), every, options
        self.balancer: Balancer | None = None
        self.stored: dict[str, Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Build the Balancer, and restore its state if training goes on from a checkpoint."""
        if self.balancer is not None:
            self.balancer.remove()
        self._measured = None
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

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Measure after the last step of an epoch, if ``every`` is ``epoch``."""
        if state.epoch is not None and float(state.epoch).is_integer():
            self._measure_epoch()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Measure, if ``every`` is ``epoch`` and the last step did not do it."""
        self._measure_epoch()

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Remove the Balancer from the optimizer; its history stays."""
        if self.balancer is not None:
            self.balancer.remove()

    def state(self) -> dict[str, Any]:
        """Return what the Trainer stores with a checkpoint."""
        # The Trainer rebuilds callbacks from ``args``, which JSON must hold; ``attributes`` are set
        # on the new object. Options such as a process group cannot be stored.
        stored = self.balancer.state_dict() if self.balancer is not None else None
        settings = {"rule": self.rule.settings(), "every": self.every}
        plain = {
            key: value for key, value in self.options.items() if key in ("background", "device")
        }
        return {"args": settings | plain, "attributes": {"stored": stored}}
