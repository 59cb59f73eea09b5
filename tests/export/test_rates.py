"""Static rates: factors by pattern, and snippets that are run as a user would run them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectail.allocation.allocation import Allocation
from spectail.cli import run
from spectail.errors import ExportError
from spectail.export.rates import Factors, Lightning, PlainTorch, Transformers, factors
from tests.export.conftest import allocation, llama_names
from tests.language import llama

NAMES = llama_names()
PARAMETERS = [name for name, _ in llama().named_parameters()]


def _rates(target: str, base: float, factor: Any = None) -> Allocation:
    """Rates that differ from layer to layer, around the base."""
    by_name = factor or {name: 0.5 + i / 8 for i, name in enumerate(NAMES)}
    made = allocation({name: base * x for name, x in by_name.items()}, target)
    return Allocation.from_dict(made.to_dict() | {"budget": base})


LR, DECAY = _rates("lr", 0.01), _rates("weight-decay", 0.1, dict.fromkeys(NAMES[:3], 2.0))


def _run(text: str) -> dict[str, Any]:
    """What a snippet defines; it is executed by itself."""
    space: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(text, "snippet.py", "exec"), space)
    return space


def _expected(name: str) -> float:
    layer = name.removesuffix(".weight")
    return 0.5 + NAMES.index(layer) / 8 if layer in NAMES else 1.0


@pytest.mark.parametrize("parameters", [None, PARAMETERS], ids=["unchecked", "checked"])
def test_factors_are_by_pattern_and_every_pattern_has_its_parameter(parameters: Any) -> None:
    found = json.loads(Factors(parameters).text(LR))
    assert len(found) == len(NAMES)
    for name in PARAMETERS:
        matching = [x for pattern, x in found.items() if re.search(pattern, name)]
        assert matching == [
            pytest.approx(_expected(name)) for _ in [0] if name.removesuffix(".weight") in NAMES
        ]
        assert matching == [x for pattern, x in found.items() if re.fullmatch(pattern, name)]


def _groups(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, tuple[float, float]]:
    """Rate and decay of every parameter, each once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def _wanted(base: float, decay: float) -> dict[str, Any]:
    doubled = {f"{name}.weight" for name in NAMES[:3]}
    return {
        name: pytest.approx((base * _expected(name), decay * (2 if name in doubled else 1)))
        for name in PARAMETERS
    }


def test_plain_torch_steps_by_these_rates() -> None:
    space = _run(PlainTorch(PARAMETERS, beside=DECAY).text(LR))
    model: Any = llama()
    optimizer = space["make_optimizer"](model, 0.02, 0.3, torch.optim.SGD)
    assert _groups(optimizer, model) == _wanted(0.02, 0.3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        rate, decay = _groups(optimizer, model)[name]
        moved = before[name] - rate * (1 + decay * before[name])
        assert torch.allclose(parameter, moved, atol=1e-6), name


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_a_scheduler_keeps_the_factors(kind: Any) -> None:
    space = _run(PlainTorch().text(LR))
    model = llama()
    optimizer = space["make_optimizer"](model, 0.02, kind=kind)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert {n: rate for n, (rate, _) in _groups(optimizer, model).items()} == {
        name: pytest.approx(0.01 * _expected(name)) for name in PARAMETERS
    }


def test_wrapped_and_frozen_models() -> None:
    space = _run(PlainTorch().text(LR))
    model = llama()
    model.lm_head.weight.requires_grad_(False)
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        groups = space["parameter_groups"](wrapped, 1.0)
        assert sum(len(group["params"]) for group in groups) == len(PARAMETERS) - 1
        assert len(groups) == len(NAMES)


class _Held(nn.Module):
    """A model with a part that is called as DDP calls the model, and two of one name."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
        self.b = nn.Linear(4, 4)


@pytest.mark.parametrize("layers", [["module.a", "b"], ["module.a"], ["b"]])
def test_a_part_that_is_called_like_a_wrapper_keeps_its_name(layers: list[str]) -> None:
    wanted = dict(zip(layers, (0.5, 2.0), strict=False))
    space = _run(PlainTorch().text(_rates("lr", 1.0, wanted)))
    model = _Held()
    compiled: Any = torch.compile(model, backend="eager")
    for wrapped in (
        model,
        nn.DataParallel(model),
        torch.compile(nn.DataParallel(model), backend="eager"),
        nn.DataParallel(compiled),
    ):
        names = {id(p): name for name, p in model.named_parameters()}
        for group in space["parameter_groups"](wrapped, 1.0):
            for p in group["params"]:
                assert group["lr"] == wanted.get(names[id(p)].rpartition(".")[0], 1.0)


def test_another_model_is_refused_when_the_snippet_runs() -> None:
    space = _run(PlainTorch().text(LR))
    with pytest.raises(ValueError, match=r"no parameter of the model matches \^model\\.layers\\.1"):
        space["parameter_groups"](llama(layers=1), 1.0)


def test_transformers_trains_with_the_groups(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    space = _run(Transformers(PARAMETERS, beside=DECAY).text(LR))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), learning_rate=0.02, weight_decay=0.3, max_steps=1,
        per_device_train_batch_size=2, report_to=[], save_strategy="no", disable_tqdm=True,
        lr_scheduler_type="constant", use_cpu=True,
    )  # fmt: skip
    row = {"input_ids": torch.arange(8), "labels": torch.arange(8)}
    model = llama()
    trainer = space["LayerRatesTrainer"](model=model, args=arguments, train_dataset=[row] * 4)
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    trainer.train()
    wanted = _wanted(0.02, 0.3)
    # Transformers decays no norms.
    for name in PARAMETERS:
        if "norm" in name:
            wanted[name] = pytest.approx((0.02, 0.0))
    optimizer = trainer.optimizer
    assert _groups(getattr(optimizer, "optimizer", optimizer), model) == wanted
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, before)


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_with_the_groups(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    space = _run(Lightning(PARAMETERS, beside=DECAY).text(LR))

    rates: Any = space["LayerRates"]
    base: Any = lightning.LightningModule

    class Module(rates, base):  # type: ignore[misc]
        lr, weight_decay, kind = 0.02, 0.3, torch.optim.SGD

        def __init__(self) -> None:
            super().__init__()
            self.model = llama()

        def training_step(self, batch: torch.Tensor, _: int) -> Any:
            return self.model(input_ids=batch, labels=batch).loss

    module = Module()
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    batches: Any = torch.arange(16).reshape(2, 2, 4)
    trainer.fit(module, batches)
    assert _groups(trainer.optimizers[0], module.model) == _wanted(0.02, 0.3)


def test_parts_of_a_fused_weight_share_their_mean() -> None:
    made = _rates("lr", 1.0, {"h.0.attn.c_attn.q": 0.5, "h.0.attn.c_attn.k": 1.5, "h.0.fc": 2.0})
    assert factors(made) == {
        r"^h\.0\.attn\.c_attn(\.weight|\.bias)?$": 1.0,
        r"^h\.0\.fc(\.weight|\.bias)?$": 2.0,
    }


def test_what_has_no_factors() -> None:
    with pytest.raises(ExportError, match="rates take an allocation of lr or weight-decay, but"):
        factors(allocation({"a": 0.5}))
    with pytest.raises(ExportError, match="rates over a base of 0 are not defined"):
        factors(_rates("lr", 0.0, {"a": 1.0}))
    with pytest.raises(ExportError, match=r"no parameter for these layers: .*: model\.layers"):
        factors(LR, [name.replace("proj", "projection") for name in PARAMETERS])
    with pytest.raises(ExportError, match="beside must be an allocation of weight-decay, but it"):
        PlainTorch(beside=LR).text(LR)
    with pytest.raises(ExportError, match="beside must be an allocation of lr, but it is of spa"):
        PlainTorch(beside=allocation({"a": 0.5})).text(DECAY)
    other = Allocation.from_dict(DECAY.to_dict() | {"fingerprint": "sha256:1", "source": "other"})
    with pytest.raises(ExportError, match="the two allocations are of different models"):
        PlainTorch(beside=other).text(LR)


@pytest.mark.parametrize("tool", ["factors", "torch", "transformers", "lightning"])
def test_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: str
) -> None:
    LR.save(tmp_path / "lr.json")
    DECAY.save(tmp_path / "decay.json")
    (tmp_path / "model").mkdir()
    llama().config.save_pretrained(tmp_path / "model")
    given = ["export", str(tmp_path / "lr.json"), "--to", tool, "--out", str(tmp_path / "out")]
    beside = ["--option", f"beside={tmp_path / 'decay.json'}"] if tool != "factors" else []
    assert run([*given, "--model", str(tmp_path / "model"), *beside]) == 0
    assert capsys.readouterr().out == f"{tool}: {tmp_path / 'out'}\n"
    text = (tmp_path / "out").read_text()
    if tool == "factors":
        assert json.loads(text) == factors(LR)
        return
    compile(text, "out", "exec")
    assert "allocated by spectail around lr 0.01 and weight-decay 0.1." in text
    assert run([*given, "--force", "--option", "beside=nothing.json"]) == 2
    assert "no allocation at nothing.json" in capsys.readouterr().err
