"""Every adapter that the installed peft can make: the row is merged minus base,
live and from the saved file."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectail.models.open import open_source

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


class Net(nn.Module):
    """One layer of each type that adapters are attached to."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(30, 16)
        self.square = nn.Linear(16, 16)
        self.wide = nn.Linear(16, 32)
        self.conv = nn.Conv2d(4, 8, 3)
        self.point = nn.Conv2d(4, 8, 1)
        self.norm = nn.LayerNorm(16)


@dataclass(frozen=True)
class Case:
    """One adapter: how peft makes it, and what its file and its live model must give."""

    config: str
    options: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ("square", "wide")
    file: str = "equal"
    """equal; base: equal only with the base model; else a word of the failed row's reason."""
    live: str = "equal"
    make: Callable[[], nn.Module] = Net


LINEAR = {"target_modules": ["square", "wide"]}
CONV = {"target_modules": ["square", "conv", "point"]}
CASES: dict[str, Case] = {
    "lora": Case("LoraConfig", {"r": 4, "lora_alpha": 6}),
    "rslora": Case("LoraConfig", {"r": 4, "lora_alpha": 6, "use_rslora": True}),
    "rank pattern": Case(
        "LoraConfig", {"r": 4, "rank_pattern": {"wide": 2}, "alpha_pattern": {"wide": 3}}
    ),
    "lora conv": Case("LoraConfig", {"r": 2} | CONV, ("square", "conv", "point")),
    "lora embedding": Case(
        "LoraConfig", {"r": 2, "target_modules": ["embed_tokens"]}, ("embed_tokens",)
    ),
    "dora": Case("LoraConfig", {"r": 4, "use_dora": True}, file="base"),
    "dora conv": Case(
        "LoraConfig", {"r": 2, "use_dora": True} | CONV, ("square", "conv", "point"), file="base"
    ),
    "dora embedding": Case(
        "LoraConfig",
        {"r": 2, "use_dora": True, "target_modules": ["embed_tokens"]},
        ("embed_tokens",),
        file="base",
    ),
    "adalora": Case(
        "AdaLoraConfig", {"init_r": 6, "target_r": 3, "lora_alpha": 5, "total_step": 10}
    ),
    "loha": Case("LoHaConfig", {"r": 3, "alpha": 5}),
    "loha conv": Case(
        "LoHaConfig", {"r": 3, "use_effective_conv2d": True} | CONV, ("square", "conv", "point")
    ),
    "loha flat conv": Case(
        "LoHaConfig", {"r": 3, "target_modules": ["conv"]}, ("conv",), file="base"
    ),
    "lokr": Case("LoKrConfig", {"r": 2, "alpha": 5}),
    "lokr whole": Case("LoKrConfig", {"r": 8, "alpha": 5}),
    "lokr both": Case(
        "LoKrConfig", {"r": 1, "alpha": 5, "decompose_both": True, "decompose_factor": 4}
    ),
    "lokr conv": Case(
        "LoKrConfig", {"r": 1, "use_effective_conv2d": True, "target_modules": ["conv"]}, ("conv",)
    ),
    "lokr flat conv": Case(
        "LoKrConfig", {"r": 1, "target_modules": ["conv"]}, ("conv",), file="base"
    ),
    "vera": Case("VeraConfig", {"r": 4}, file="base"),
    "randlora": Case("RandLoraConfig", {"r": 4}, file="base"),
    "vblora": Case("VBLoRAConfig", {"r": 4, "vector_length": 4, "num_vectors": 9, "topk": 2}),
    "fourierft": Case("FourierFTConfig", {"n_frequency": 40}, file="base"),
    "hra": Case("HRAConfig", {"r": 4}, file="base"),
    "hra orthogonal": Case("HRAConfig", {"r": 4, "apply_GS": True}, file="base"),
    "oft": Case("OFTConfig", {"oft_block_size": 4}, file="base"),
    "oft exact": Case("OFTConfig", {"oft_block_size": 4, "use_cayley_neumann": False}, file="base"),
    "oft series": Case(
        "OFTConfig", {"oft_block_size": 4, "num_cayley_neumann_terms": 3}, file="base"
    ),
    "oft shared": Case("OFTConfig", {"oft_block_size": 4, "block_share": True}, file="base"),
    "boft": Case("BOFTConfig", {"boft_block_size": 4}, file="BOFT"),
    "hira": Case("HiraConfig", {"r": 4}, file="base"),
    "delora": Case("DeloraConfig", {"r": 4}),
    "gralora": Case("GraloraConfig", {"r": 4}, file="GraLoRA"),
    "miss": Case("MissConfig", {"r": 4}, file="MiSS"),
    "c3a": Case("C3AConfig", {"block_size": 8}, file="C3A"),
    "shira": Case("ShiraConfig", {"r": 2}, file="SHiRA"),
    "road": Case("RoadConfig", {"group_size": 8}, file="RoAd"),
    "deft": Case("DeftConfig", {}, file="DEFT"),
    "glora": Case("GloraConfig", {}, file="GLoRA"),
    "pvera": Case("PveraConfig", {"r": 4}, file="PVeRA"),
    "tinylora": Case("TinyLoraConfig", {}, file="TinyLoRA"),
    "waveft": Case("WaveFTConfig", {"n_frequency": 20}, file="WaveFT"),
    "psoft": Case("PsoftConfig", {"r": 4}, file="PSOFT"),
    "unilora": Case("UniLoraConfig", {"r": 4}, file="UniLoRA"),
    "supertuning": Case("SupertuningConfig", {}, file="super tuning"),
    "osf": Case("OSFConfig", {}, file="OSF"),
    "poly": Case("PolyConfig", {}, file="Poly", live="cannot merge"),
    "lily": Case("LilyConfig", {}, file="Lily", live="cannot merge"),
    "peanut": Case("PeanutConfig", {}, file="PEANuT"),
    "frod": Case("FrodConfig", {}, file="FRoD"),
    "trainable tokens": Case(
        "TrainableTokensConfig",
        {"token_indices": [1, 5], "target_modules": ["embed_tokens"], "init_weights": False},
        ("embed_tokens",),
        file="trainable tokens",
    ),
    "ia3": Case("IA3Config", {"feedforward_modules": ["wide"]}, (), file="vectors", live="vectors"),
    "ia3 conv": Case(
        "IA3Config", {"feedforward_modules": []} | CONV, (), file="vectors", live="vectors"
    ),
    "beft": Case("BeftConfig", {}, (), file="vectors", live="vectors"),
    "layer norm": Case(
        "LNTuningConfig", {"target_modules": ["norm"]}, (), file="vectors", live="vectors"
    ),
}


def quietly(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*given, **named)


def make(case: Case) -> nn.Module:
    """A peft model of this form with random pieces."""
    kind = getattr(peft, case.config, None)
    if kind is None:
        pytest.skip(f"the installed peft has no {case.config}")
    known = inspect.signature(kind).parameters
    options = {"target_modules": LINEAR["target_modules"]} | case.options
    torch.manual_seed(0)
    model = quietly(
        peft.get_peft_model, case.make(), kind(**{k: v for k, v in options.items() if k in known})
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.copy_(
                    torch.randn_like(parameter) * (0.3 if "magnitude" not in name else 1.0)
                )
    result: nn.Module = model.eval()
    return result


def changes(model: Any) -> dict[str, torch.Tensor]:
    """Merged minus base by the name of the weight, both in float64."""
    wide = copy.deepcopy(model).double()
    base = {
        name: p.detach().clone()
        for name, p in quietly(copy.deepcopy(wide).unload).named_parameters()
    }
    merged = dict(quietly(wide.merge_and_unload).named_parameters())
    return {name: merged[name].detach() - base[name] for name in base if merged[name].ndim > 1}


def matrices(change: torch.Tensor) -> torch.Tensor:
    """(n_matrices, out, in) of a change in the layer's orientation."""
    return change.flatten(2).permute(2, 0, 1) if change.ndim > 2 else change.unsqueeze(0)


def assert_rows(source: Any, model: Any, case: Any, *, strict: bool) -> None:
    rows = {layer.name: layer for layer in source.layers if layer.kind == "lora"}
    assert set(rows) == {f"{target}.lora" for target in case.targets}
    expected = changes(model)
    for target in case.targets:
        row, truth = rows[f"{target}.lora"], matrices(expected[f"{target}.weight"])
        assert row.problem is None
        assert (row.n_matrices, row.rows, row.cols) == tuple(truth.shape)
        assert truth.abs().max() > 1e-4
        torch.testing.assert_close(
            row.read(), truth, rtol=1e-5 if strict else 1e-4, atol=1e-6 if strict else 1e-5
        )


@pytest.mark.parametrize("name", CASES)
def test_live(name: str) -> None:
    case = CASES[name]
    model: Any = make(case)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    source = open_source(model)
    rows = [layer for layer in source.layers if layer.kind == "lora"]
    if case.live == "vectors":
        assert not rows
        assert {layer.name for layer in source.layers} == {
            layer.name for layer in open_source(case.make()).layers
        }
    elif case.live == "equal":
        assert_rows(source, model, case, strict=True)
        others = {layer.name for layer in source.layers} - {layer.name for layer in rows}
        assert others == {layer.name for layer in open_source(case.make()).layers}
    else:
        for row in rows:
            with pytest.raises(Exception, match=case.live):
                row.read()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", CASES)
def test_file(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model: Any = make(case)
    quietly(model.save_pretrained, tmp_path)
    source = open_source(tmp_path)
    rows = [layer for layer in source.layers if layer.kind == "lora"]
    if case.file == "vectors":
        assert not source.layers
        assert source.n_vectors
    elif case.file == "equal":
        assert_rows(source, model, case, strict=True)
    else:
        assert rows
        assert [layer.name for layer in source.layers if layer not in rows] == []
        if case.file != "base":
            assert all(
                case.file in str(row.problem) and "live model" in str(row.problem) for row in rows
            )
        elif "dora" in name:
            assert all("magnitude" in row.note for row in rows)
        else:
            assert any(row.problem and "base model" in row.problem for row in rows)


@pytest.mark.parametrize("place", ["beside", "named", "relative"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.file == "base"])
def test_file_with_its_base_model(name: Any, place: str, tmp_path: Path) -> None:
    case = CASES[name]
    model: Any = make(case)
    adapter = tmp_path / "adapter"
    base = adapter if place == "beside" else tmp_path / "base"
    quietly(model.save_pretrained, adapter)
    base.mkdir(exist_ok=True)
    torch.save(quietly(copy.deepcopy(model).unload).state_dict(), base / "pytorch_model.bin")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = {
        "beside": "org/name",
        "named": str(base),
        "relative": "../base",
    }[place]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    source = open_source(adapter / "adapter_model.safetensors" if place == "beside" else adapter)
    assert_rows(source, model, case, strict=False)
    assert all(not layer.note for layer in source.layers)


NO_CHANGE_OF_A_WEIGHT = {
    "PROMPT_TUNING": "prompts are inputs",
    "MULTITASK_PROMPT_TUNING": "prompts are inputs",
    "P_TUNING": "prompts are inputs",
    "PREFIX_TUNING": "prompts are inputs",
    "CPT": "prompts are inputs",
    "CARTRIDGE": "prompts are inputs",
    "ADAPTION_PROMPT": "prompts are inputs",
    "SHADOW": "a second network beside the model",
    "XLORA": "several LoRA adapters, mixed for each input",
    "ADAMSS": "needs scikit-learn, which is not installed for the tests",
}


def test_every_form_of_the_installed_peft_is_in_the_table() -> None:
    kinds = {
        kind.value: config.__name__
        for kind, config in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    tested = {case.config for case in CASES.values()}
    assert {kind for kind, config in kinds.items() if config not in tested} <= set(
        NO_CHANGE_OF_A_WEIGHT
    )
