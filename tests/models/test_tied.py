"""Tied weights: listed once, and as WeightWatcher counts them under its preset."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import spectail as st
from spectail.models.open import open_source
from tests.models.cases import Tied
from tests.models.test_gguf import random, write


def _names(source: object, spec: st.Spec) -> list[str]:
    return list(st.analyze(source, spec=spec).table["name"])


def test_a_tied_head_is_counted_only_under_the_preset() -> None:
    torch.manual_seed(0)
    model = Tied()
    assert _names(model, st.presets.FULL) == ["embed_tokens"]
    table = st.analyze(model, spec=st.presets.WEIGHTWATCHER).table.set_index("name")
    assert list(table.index) == ["embed_tokens", "lm_head"]
    assert list(table["kind"]) == ["embedding", "head"]
    assert table["alpha"].nunique() == 1
    assert "uses the weight of embed_tokens" in str(table.loc["lm_head", "reason"])


def test_a_module_that_is_used_twice_is_one_layer() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(20, 20)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(20, 20)})
    assert _names(model, st.presets.WEIGHTWATCHER) == ["a", "c"]


CONFIGS = {
    "tied by default": ({"architectures": ["LlamaForCausalLM"]}, True),
    "tied": ({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}, True),
    "not tied": ({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}, False),
    "no head": ({"architectures": ["LlamaModel"]}, False),
    "nothing known": ({}, False),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_the_configuration_says_whether_a_file_is_tied(case: str, tmp_path: Path) -> None:
    config, tied = CONFIGS[case]
    torch.manual_seed(0)
    save_file(
        {
            "model.embed_tokens.weight": torch.randn(40, 16),
            "model.layers.0.mlp.up_proj.weight": torch.randn(32, 16),
        },
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ("lm_head" in _names(tmp_path, st.presets.WEIGHTWATCHER)) == tied
    assert "lm_head" not in _names(tmp_path, st.presets.FULL)


@pytest.mark.parametrize(
    ("architecture", "names", "tied"),
    [
        ("llama", ("token_embd", "blk.0.ffn_up"), True),
        ("llama", ("token_embd", "output"), False),
        ("bert", ("token_embd", "blk.0.ffn_up"), False),
        ("llama", ("blk.0.ffn_up",), False),
    ],
)
def test_a_gguf_file_without_a_head_is_tied(
    architecture: str, names: tuple[str, ...], tied: bool, tmp_path: Path
) -> None:
    tensors = {f"{name}.weight": random(40, 32) for name in names}
    source = open_source(write(tmp_path / "m.gguf", architecture, tensors))
    assert [layer.name for layer in source.tied] == ["lm_head"] * tied


class LightningModule(nn.Module):
    """Recognised by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Tied()


def test_names_of_tied_layers_lose_the_same_prefixes() -> None:
    torch.manual_seed(0)
    for model in (LightningModule(), nn.DataParallel(Tied())):
        assert _names(model, st.presets.WEIGHTWATCHER) == ["embed_tokens", "lm_head"]


def test_a_stored_head_is_not_counted_twice(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 16)
    save_file(
        {"model.embed_tokens.weight": weight, "lm_head.weight": weight.clone()},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    assert _names(tmp_path, st.presets.WEIGHTWATCHER).count("lm_head") == 1
