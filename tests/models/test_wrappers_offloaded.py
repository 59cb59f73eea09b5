"""Weights that accelerate has offloaded are read from where they are, and nothing is moved."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectail.models.open import open_source

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.LlamaConfig(vocab_size=20, num_key_value_heads=1, **sizes, **options)
    return transformers.LlamaForCausalLM(config).eval()


def mixed(**places: Any) -> dict[str, Any]:
    parts = (
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
        "model.rotary_emb",
        "lm_head",
    )
    return {part: places.get(part.rpartition(".")[2], "cpu") for part in parts}


WAYS = {
    "cpu": lambda model, folder: accelerate.cpu_offload(model, execution_device="cpu"),
    "disk": lambda model, folder: accelerate.disk_offload(model, folder, execution_device="cpu"),
    "some blocks": lambda model, folder: dispatch(model, folder, **{"0": "disk", "norm": "disk"}),
    "head on disk": lambda model, folder: dispatch(model, folder, lm_head="disk"),
    "embedding on disk": lambda model, folder: dispatch(model, folder, embed_tokens="disk"),
    "all on disk": lambda model, folder: dispatch(
        model, folder, **dict.fromkeys(("embed_tokens", "0", "1"), "disk")
    ),
}


def dispatch(model: Any, folder: Path, **places: Any) -> Any:
    return accelerate.dispatch_model(model, mixed(**places), main_device="cpu", offload_dir=folder)


def quietly(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*given, **named)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_offloaded_weights_are_those_of_the_model(way: str, tied: bool, tmp_path: Path) -> None:
    plain = open_source(llama(tie_word_embeddings=tied))
    model = quietly(WAYS[way], llama(tie_word_embeddings=tied), tmp_path) or None
    assert model is not None
    devices = {name: parameter.device for name, parameter in model.named_parameters()}
    kept = tied and way in {
        "head on disk",
        "embedding on disk",
    }  # accelerate keeps tied weights together
    assert any(device.type == "meta" for device in devices.values()) != kept
    source = open_source(model)
    assert source.layers == plain.layers
    assert source.n_vectors == plain.n_vectors
    for layer, expected in zip(source.layers, plain.layers, strict=True):
        assert torch.equal(layer.read(), expected.read()), layer.name
    assert {name: parameter.device for name, parameter in model.named_parameters()} == devices


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_transformers_loads_onto_disk(tied: bool, tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=tied)
    plain = open_source(model)
    model.save_pretrained(tmp_path / "model")
    load = transformers.LlamaForCausalLM.from_pretrained
    places = mixed(**{"0": "disk", "1": "disk"})
    loaded = quietly(load, tmp_path / "model", device_map=places, offload_folder=tmp_path / "off")
    source = open_source(loaded)
    assert source.layers == plain.layers
    for layer, expected in zip(source.layers, plain.layers, strict=True):
        assert torch.equal(layer.read(), expected.read()), layer.name


def test_convolutions_and_hooks_in_sequence(tmp_path: Path) -> None:
    def make() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
        )

    model = make()
    accelerate.cpu_offload(model, execution_device="cpu")
    accelerate.hooks.add_hook_to_module(model[0], accelerate.hooks.ModelHook(), append=True)
    source, plain = open_source(model), open_source(make())
    assert source.layers == plain.layers
    assert all(
        torch.equal(a.read(), b.read()) for a, b in zip(source.layers, plain.layers, strict=True)
    )


def test_what_was_never_loaded_stays_a_failed_row() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 5))
    (layer,) = open_source(model).layers
    assert "never loaded" in str(layer.problem)
