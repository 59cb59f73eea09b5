"""A callback with a Balancer for Lightning.

Use it as ``Trainer(callbacks=[BalancerCallback("tempbalance", every="epoch")])``. Its state is
stored in Lightning's checkpoints and restored from them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch.distributed as dist

from spectail.errors import TrainingError
from spectail.training.balancer import Balancer
from spectail.training.epochs import EPOCH, EndOfEpoch
from spectail.training.rules import Rule, as_rule


def _base() -> type[Any]:
    """Return Lightning's ``Callback``; ``object`` if Lightning is not installed."""
    # The package has two names, whose classes differ; a Trainer accepts only its own.
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            base: type[Any] = import_module(name).Callback
        except ImportError:
            continue
        return base
    return object


_Callback: Any = _base()


class BalancerCallback(EndOfEpoch, _Callback):  # type: ignore[misc]
    """Builds a Balancer when training starts and removes it at the end; ``balancer`` holds it.

    ``every`` is a number of optimizer steps, or ``epoch`` to measure at the end of each epoch. A
    module with several optimizers needs ``optimizer``, the number of the one to balance.
    ``options`` are passed on to ``Balancer``. Several processes share the measuring of the layers.
    """

    def __init__(
        self,
        rule: Rule | str,
        *,
        every: int | str = EPOCH,
        optimizer: int | None = None,
        **options: Any,
    ) -> None:
        self.rule, self.every = as_rule(rule), every
        self.optimizer, self.options = optimizer, options
        self.balancer: Balancer | None = None
        self.stored: dict[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Build the Balancer, and restore its state if training goes on from a checkpoint."""
        self._measured = None
        # Of several optimizers the first may be the wrong one, so the user must choose.
        count = len(trainer.optimizers)
        if self.optimizer is None and count != 1:
            raise TrainingError(
                f"the module has {count} optimizers: say which to balance, optimizer=0 for the "
                "first"
            )
        # Lightning hands over the bare module, which does not show the group of its wrapper.
        group = dist.group.WORLD if trainer.world_size > 1 else None
        options = {"group": group, **self.options}
        every: Any = None if self.every == EPOCH else self.every
        self.balancer = Balancer(
            pl_module, trainer.optimizers[self.optimizer or 0], self.rule, every=every, **options
        )
        # Lightning loads the callback before training starts, when there is no Balancer yet.
        if self.stored is not None:
            self.balancer.load_state_dict(self.stored)
            self.stored = None

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Measure after the last batch of an epoch, if ``every`` is ``epoch``."""
        if trainer.is_last_batch:
            self._measure_epoch()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure, if ``every`` is ``epoch`` and the last batch did not do it."""
        self._measure_epoch()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Remove the Balancer from the optimizer; its history stays."""
        if self.balancer is not None:
            self.balancer.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return what Lightning stores with a checkpoint."""
        return {
            "balancer": self.balancer.state_dict() if self.balancer is not None else self.stored
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state from a checkpoint until training starts and the Balancer is built."""
        self.stored = state_dict["balancer"]
