"""The law of this package: a layer is the same, by name, shape and value,
whichever way its model came in."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spectail.models.formats.ranges import StoredArray
from spectail.models.naming.names import canonical_name
from spectail.models.open import open_source

from .cases import PLAIN, TRANSFORMERS


def weights(source: Any) -> list[Any]:
    return [layer for layer in open_source(source).layers if not layer.no_weight]


def contiguous(state: Any) -> dict[str, Any]:
    return {name: tensor.clone().contiguous() for name, tensor in state.items()}


def save_sharded(state: Any, folder: Path) -> Path:
    names = sorted(state)
    weight_map: dict[str, Any] = {}
    for number, chosen in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file(contiguous({name: state[name] for name in chosen}), folder / file)
        weight_map |= dict.fromkeys(chosen, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def stored_ways(model: Any, folder: Path) -> Iterator[Any]:
    """Save a model in every way that keeps its names."""
    model.eval()
    state = model.state_dict()
    (folder / "sharded").mkdir()
    (folder / "folder").mkdir()
    save_file(contiguous(state), folder / "model.safetensors")
    save_file(contiguous(state), folder / "folder" / "model.safetensors")
    torch.save(state, folder / "model.pt")
    torch.save(state, folder / "old.bin", _use_new_zipfile_serialization=False)
    torch.save(
        {"epoch": 3, "optimizer": {"state": {0: torch.ones(4, 4)}}, "model": state},
        folder / "train.pth",
    )
    torch.save({"module." + name: tensor for name, tensor in state.items()}, folder / "ddp.pt")
    yield "safetensors", folder / "model.safetensors"
    yield "folder", folder / "folder"
    yield "index", save_sharded(state, folder / "sharded")
    yield "sharded folder", folder / "sharded"
    yield "pt", folder / "model.pt"
    yield "legacy bin", str(folder / "old.bin")
    yield "training checkpoint", folder / "train.pth"
    yield "ddp", folder / "ddp.pt"
    yield "state dict", state
    yield "compiled", {"_orig_mod." + name: tensor for name, tensor in state.items()}
    yield "arrays", {n: t.numpy() for n, t in state.items() if t.dtype != torch.bfloat16}


@pytest.mark.parametrize("case", PLAIN)
def test_every_way_in_gives_the_same_layers(case: Any, tmp_path: Path) -> None:
    model = PLAIN[case]()
    live = open_source(model)
    assert live.layers
    expected = {layer.name: layer for layer in live.layers}
    for way, source in stored_ways(model, tmp_path):
        if way == "arrays" and case == "bfloat16":
            continue
        stored = open_source(source)
        found = {layer.name: layer for layer in stored.layers}
        # A safetensors file has no shared storages: it holds tied weights twice.
        extra = (
            {"lm_head"}
            if case == "tied" and way in {"safetensors", "folder", "index", "sharded folder"}
            else set()
        )
        assert set(found) - extra == set(expected), way
        assert stored.n_vectors == live.n_vectors, way
        for name, layer in expected.items():
            if layer.no_weight:
                # Only a live model can name the module that owns a parameter.
                assert replace(found[name], no_weight=layer.no_weight) == layer, way
                assert layer.no_weight.startswith(str(found[name].no_weight)), way
                continue
            assert found[name] == layer, way
            # Where a norm is computed, the last bit depends on where in memory the weights lie.
            close = torch.allclose if case == "normed" else torch.equal
            assert close(found[name].read(), layer.read()), (way, name)


@pytest.mark.parametrize("case", PLAIN)
def test_load_gives_what_was_announced(case: Any) -> None:
    for layer in weights(PLAIN[case]()):
        matrices = layer.read()
        assert tuple(matrices.shape) == (layer.n_matrices, layer.rows, layer.cols)
        assert layer.numel == math.prod(matrices.shape)
        expected = (
            torch.float64
            if case == "double"
            else torch.complex64
            if layer.kind == "spectral"
            else torch.float32
        )
        assert matrices.dtype == expected
        assert not matrices.requires_grad


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_transformers_models_equal_their_saved_folder(case: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model: Any = TRANSFORMERS[case]().eval()
    model.save_pretrained(tmp_path)
    live = {canonical_name(layer.name): layer for layer in open_source(model).layers}
    saved = {canonical_name(layer.name): layer for layer in open_source(tmp_path).layers}
    assert set(live) == set(saved)
    for name, layer in live.items():
        assert (layer.rows, layer.cols, layer.kind, layer.block) == (
            saved[name].rows,
            saved[name].cols,
            saved[name].kind,
            saved[name].block,
        ), name
        assert torch.equal(layer.read(), saved[name].read()), name
    assert open_source(model).n_vectors == open_source(tmp_path).n_vectors


def test_opening_and_loading_changes_nothing() -> None:
    model = PLAIN["normed"]().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in open_source(model).layers:
        layer.read()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_parametrisation_of_the_user_is_computed_by_the_module() -> None:
    class Symmetric(nn.Module):
        def forward(self, weight: torch.Tensor) -> Any:
            return weight.triu() + weight.triu(1).T

    model: Any = nn.Sequential(nn.Linear(4, 4))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Symmetric())
    (layer,) = open_source(model).layers
    assert layer.name == "0"
    assert torch.equal(layer.read()[0], model[0].weight)
    stored = open_source(model.state_dict())
    assert [item.name for item in stored.layers] == ["0"]
    assert "parametrised" in str(stored.layers[0].problem)


def test_tied_weights_appear_once_under_their_first_name() -> None:
    assert [layer.name for layer in open_source(PLAIN["tied"]()).layers] == ["embed_tokens"]


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_do_not_show(wrap: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = wrap(model)
    assert open_source(wrapped).layers == open_source(model).layers


def test_a_tensor_that_only_the_index_knows_is_noted(tmp_path: Path) -> None:
    index = save_sharded({"a.weight": torch.ones(2, 3), "b.weight": torch.ones(2, 3)}, tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"]["c.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    assert open_source(tmp_path).notes == ("the index names c.weight, which no shard holds",)


def test_one_part_of_a_large_tensor_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {
        "mlp.experts.gate_up_proj": torch.randn(4, 24, 8),
        "mlp.experts.down_proj": torch.randn(4, 8, 12),
    }
    save_file(state, tmp_path / "m.safetensors")
    read = []
    original = StoredArray.read

    def spy(array: Any, index: Any = ()) -> Any:
        piece = original(array, index)
        read.append((tuple(piece.shape), piece.untyped_storage().nbytes()))
        return piece

    monkeypatch.setattr(StoredArray, "read", spy)
    source = open_source(tmp_path / "m.safetensors")
    for layer in source.layers:
        layer.read()
    assert set(read) == {((12, 8), 12 * 8 * 4), ((8, 12), 8 * 12 * 4)}


def test_layers_can_be_sent_to_another_process(tmp_path: Path) -> None:
    for case, make in PLAIN.items():
        model = make()
        torch.save(model.state_dict(), tmp_path / "m.pt")
        save_file(contiguous(model.state_dict()), tmp_path / "m.safetensors")
        for source in (tmp_path / "m.pt", tmp_path / "m.safetensors"):
            layers = weights(source)
            for before, after in zip(layers, pickle.loads(pickle.dumps(layers)), strict=True):
                assert torch.allclose(before.read(), after.read()), case


def test_buffers_are_no_layers() -> None:
    model = nn.Linear(3, 4)
    model.register_buffer("mask", torch.ones(4, 4))
    assert [layer.name for layer in open_source(model).layers] == ["weight"]
