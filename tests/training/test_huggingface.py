"""The callback for transformers' Trainer: the factors of a plain loop, and
checkpoints that resume exactly.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from spectail.errors import TrainingError
from spectail.training.huggingface import BalancerCallback
from spectail.training.rules import LLR
from tests.training.nets import same, weights_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*pin_memory.*:UserWarning", "ignore::FutureWarning"
)


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes))


class Words(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 40, (12,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


def trainer(folder: Path, callback: BalancerCallback, **more: Any) -> Any:
    options: dict[str, Any] = {
        "max_steps": 9,
        "save_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
    }
    arguments = TrainingArguments(
        str(folder),
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        warmup_steps=2,
        logging_steps=1,
        **options | more,
    )
    return Trainer(model(), arguments, train_dataset=Words(), callbacks=[callback])


def rates(run: Any) -> list[float]:
    return [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]


def test_a_trainer_with_the_callback(tmp_path: Path) -> None:
    callback = BalancerCallback("tempbalance", every=3)
    run = trainer(tmp_path, callback)
    run.train()
    balancer = callback.balancer
    assert balancer is not None
    assert [update.step for update in balancer.history] == [3, 6, 9]
    assert len(balancer.factors) == 14
    assert balancer.left_out["lm_head"] == "the output head"
    plain = trainer(tmp_path / "plain", BalancerCallback("tempbalance", every=1000))
    with pytest.warns(
        UserWarning,
        match="nothing was measured in 9 steps, so that every factor was 1: it measures",
    ):
        plain.train()
    assert rates(run) == rates(plain), "the base rate is logged"
    assert not same(weights_of(run.model), weights_of(plain.model))
    assert not balancer.optimizer._optimizer_step_pre_hooks, "taken off at the end"


@pytest.mark.parametrize("rule", ["tempbalance", LLR(transition=3)])
def test_a_resumed_trainer_is_the_same(tmp_path: Path, rule: str | LLR) -> None:
    whole, resumed = BalancerCallback(rule, every=3), BalancerCallback(rule, every=3)
    first = trainer(tmp_path, whole)
    first.train()
    stored = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert stored["stateful_callbacks"]["BalancerCallback"]["attributes"]["stored"]["steps"] == 4
    second = trainer(tmp_path / "again", resumed)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.balancer is not None
    assert whole.balancer is not None
    assert whole.balancer.factors == resumed.balancer.factors
    assert same(weights_of(first.model), weights_of(second.model))
    assert resumed.balancer.history.table.equals(whole.balancer.history.table)


@pytest.mark.parametrize(
    ("options", "ends", "background"),
    [
        ({"save_steps": 6}, [6, 8], False),
        ({"save_steps": 6}, [6, 8], True),
        ({"save_steps": 3, "gradient_accumulation_steps": 2}, [3, 6, 8], False),
        ({"save_strategy": "epoch"}, [6, 8], True),
    ],
)
def test_a_run_that_measures_every_epoch_is_resumed_from_its_end(
    tmp_path: Path, options: dict[str, Any], ends: list[int], background: bool
) -> None:
    """A checkpoint of an epoch's last step is stored before the Trainer ends the epoch."""
    whole, resumed = (BalancerCallback("tempbalance", background=background) for _ in range(2))
    first = trainer(tmp_path, whole, max_steps=8, **options)
    first.train()
    second = trainer(tmp_path / "again", resumed, max_steps=8, **options)
    second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{ends[0]}"))
    assert whole.balancer is not None
    assert resumed.balancer is not None
    # In the background the factors of the last measurement are never applied.
    steps = [update.step for update in whole.balancer.history]
    assert steps == ends[: len(ends) - background]
    assert resumed.balancer.history.table.equals(whole.balancer.history.table)
    assert same(weights_of(first.model), weights_of(second.model))


def test_the_trainer_may_restore_the_callback_itself(tmp_path: Path) -> None:
    first = trainer(tmp_path, BalancerCallback("tempbalance:sqrt", every=3))
    first.train()
    again = trainer(
        tmp_path / "again",
        BalancerCallback("tempbalance:sqrt", every=3),
        restore_callback_states_from_checkpoint=True,
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert same(weights_of(first.model), weights_of(again.model))


def test_once_per_epoch(tmp_path: Path) -> None:
    logged: list[int] = []
    callback = BalancerCallback("alphadecay", log=lambda values, step: logged.append(step))
    trainer(
        tmp_path, callback, max_steps=-1, num_train_epochs=2, weight_decay=0.1, save_strategy="no"
    ).train()
    assert callback.balancer is not None
    assert [update.step for update in callback.balancer.history] == [6, 12] == logged


def test_bad_rules_and_every_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the rule must be one of"):
        BalancerCallback("fast")
    with pytest.raises(
        TrainingError, match="every must be a whole number of optimizer steps of at least 1"
    ):
        trainer(tmp_path, BalancerCallback("tempbalance", every=0)).train()
