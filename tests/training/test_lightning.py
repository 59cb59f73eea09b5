"""The callback for Lightning: by itself with what Lightning gives it, and in a real
Trainer where it is installed.
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spectail.errors import TrainingError
from spectail.training.balancer import Balancer
from spectail.training.lightning import BalancerCallback
from tests.training.nets import batch, loss_of, net, same, train, weights_of

needs_lightning = pytest.mark.skipif(
    not importlib.util.find_spec("lightning"), reason="lightning is not installed"
)


def around(model: torch.nn.Sequential, count: int = 1) -> Any:
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for _ in range(count)]
    return SimpleNamespace(optimizers=optimizers, world_size=1)


def test_the_callback_builds_measures_stores_and_goes() -> None:
    model = net()
    trainer, callback = around(model), BalancerCallback("tempbalance")
    assert callback.state_dict() == {"balancer": None}
    callback.on_train_start(trainer, model)
    train(model, trainer.optimizers[0], 2)
    callback.on_train_epoch_end(trainer, model)
    assert callback.balancer is not None
    assert [update.step for update in callback.balancer.history] == [2]
    again, other = BalancerCallback("tempbalance"), net()
    again.load_state_dict(callback.state_dict())
    again.on_train_start(around(other), other)
    assert again.balancer is not None
    assert again.balancer.factors == callback.balancer.factors
    callback.on_train_end(trainer, model)
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks


def test_an_epoch_is_measured_before_the_checkpoint_of_its_last_batch() -> None:
    """Lightning stores it before it tells that the epoch has ended."""
    model = net()
    trainer, callback = around(model), BalancerCallback("tempbalance")
    callback.on_train_start(trainer, model)
    for last in (False, True):
        train(model, trainer.optimizers[0], 1)
        trainer.is_last_batch = last
        callback.on_train_batch_end(trainer, model, None, None, 0)
        stored = callback.state_dict()["balancer"]["history"]["updates"]
        assert [update["step"] for update in stored] == [2] * last
    callback.on_train_epoch_end(trainer, model)
    assert callback.balancer is not None
    assert len(callback.balancer.history) == 1, "once is enough"


def test_several_optimizers_need_a_choice() -> None:
    model = net()
    with pytest.raises(
        TrainingError, match="the module has 2 optimizers: say which to balance, optimizer=0"
    ):
        BalancerCallback("tempbalance").on_train_start(around(model, 2), model)
    BalancerCallback("tempbalance", optimizer=1).on_train_start(around(model, 2), model)


def fit(
    folder: Path,
    epochs: Any,
    every: Any,
    checkpoint: Path | None = None,
    *,
    each: int = 0,
    **options: Any,
) -> Any:
    """Train; with ``each``, store a checkpoint after so many steps."""
    import lightning.pytorch as lightning

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.rates: list[list[float]] = []

        def training_step(self, step: Any, _: Any) -> Any:
            x = batch(int(step))
            self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
            return (self.net(x) - x[:, :4].sin()).square().mean()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)]

    callback, module = BalancerCallback("tempbalance", every=every, **options), Module()
    checkpoints = lightning.callbacks.ModelCheckpoint(
        dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=each
    )
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(each),
        callbacks=[callback, checkpoints][: 1 + bool(each)],
    )
    steps: Any = torch.arange(5)
    loader = torch.utils.data.DataLoader(steps, batch_size=1)
    trainer.fit(module, loader, ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module, callback


@needs_lightning
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("background", [False, True])
def test_a_lightning_trainer_resumes_from_an_epochs_last_step(
    tmp_path: Path, background: bool
) -> None:
    whole, first = fit(tmp_path, 3, "epoch", each=5, background=background)
    resumed, second = fit(
        tmp_path / "2", 3, "epoch", tmp_path / "step=5.ckpt", each=5, background=background
    )
    assert second.balancer.history.table.equals(first.balancer.history.table)
    assert same(weights_of(whole), weights_of(resumed))


@needs_lightning
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("every", ["epoch", 3])
def test_a_lightning_trainer_resumes_exactly(tmp_path: Path, every: str | int) -> None:
    whole, first = fit(tmp_path, 4, every)
    fit(tmp_path, 2, every)
    resumed, second = fit(tmp_path, 4, every, tmp_path / "last.ckpt")
    assert second.balancer.factors == first.balancer.factors
    assert second.balancer.history.table.equals(first.balancer.history.table)
    assert same(weights_of(whole), weights_of(resumed))
    assert all(len(rates) == 1 for rates in whole.rates), "the training step sees the base rate"
    assert [u.step for u in first.balancer.history] == (
        [5, 10, 15, 20] if every == "epoch" else list(range(3, 20, 3))
    )


@needs_lightning
@pytest.mark.filterwarnings("ignore")
def test_the_optimizer_that_lightning_hands_out_is_followed() -> None:
    import lightning.pytorch as lightning

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.automatic_optimization = net(), False
            self.balancer: Balancer | None = None

        def training_step(self, step: Any, _: Any) -> None:
            optimizer = self.optimizers()
            self.balancer = self.balancer or Balancer(self.net, optimizer, "tempbalance", every=2)
            optimizer.zero_grad()
            self.manual_backward(loss_of(self.net, int(step)))
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    module = Module()
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = lightning.Trainer(
        max_epochs=1, enable_progress_bar=False, enable_model_summary=False, **options
    )
    steps: Any = torch.arange(6)
    trainer.fit(module, torch.utils.data.DataLoader(steps, batch_size=1))
    other = net()
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.01)
    balancer = Balancer(other, optimizer, "tempbalance", every=2)
    train(other, optimizer, 6)
    assert module.balancer is not None
    assert module.balancer.steps == balancer.steps == 6
    assert same(weights_of(module.net), weights_of(other))
