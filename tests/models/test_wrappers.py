"""What training puts around a model does not show: names in memory and in files
are those of the model itself."""

from __future__ import annotations

import functools
import socket
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch._C._distributed_c10d import TCPStore
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.multiprocessing.spawn import spawn

from spectail.models.naming.names import clean_names
from spectail.models.open import open_source


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "o_proj": nn.Linear(8, 8)})
        self.mlp = nn.Linear(8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.encoder = nn.ModuleDict(
            {"stem": nn.Linear(8, 8), "blocks": nn.ModuleList([Block(), Block()])}
        )
        self.norm = nn.LayerNorm(8)


class LightningModule(nn.Module):
    """Stands for Lightning's own, which is known by its name."""


class Lit(LightningModule):
    def __init__(self, attribute: Any, net: Any) -> None:
        super().__init__()
        setattr(self, attribute, net)


def compiled(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: Any = torch.compile(module)
    return result


def inside(wrap: Callable[..., Any], *paths: Any) -> Callable[..., Any]:
    """Wrap some modules inside of a model, the innermost first."""

    def apply(net: Any) -> Any:
        for path in sorted(paths, key=len, reverse=True):
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, wrap(net.get_submodule(path)))
        return net

    return apply


def both(first: Any, second: Any) -> Callable[..., Any]:
    return lambda net: second(first(net))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "data parallel": nn.DataParallel,
    "compiled": compiled,
    "compiled data parallel": both(nn.DataParallel, compiled),
    "data parallel, compiled": both(compiled, nn.DataParallel),
    "compiled twice": both(inside(compiled, "encoder"), compiled),
    "compiled parts": inside(compiled, "encoder.blocks.0", "encoder.blocks.1", "embed"),
    "compiled in compiled": inside(compiled, "encoder.blocks.0", "encoder.blocks.0.attn.q_proj"),
    "one layer compiled": inside(compiled, "encoder.stem"),
    "activation checkpoints": inside(checkpoint_wrapper, "encoder.blocks.0", "encoder.blocks.1"),
    "checkpoints and compiled": both(
        inside(checkpoint_wrapper, "encoder.blocks.0"), inside(compiled, "encoder.blocks.0")
    ),
    "data parallel part": inside(nn.DataParallel, "encoder"),
    "data parallel twice": both(nn.DataParallel, nn.DataParallel),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "averaged, compiled": both(compiled, torch.optim.swa_utils.AveragedModel),
    "lightning model": functools.partial(Lit, "model"),
    "lightning net": functools.partial(Lit, "net"),
    "lightning, compiled": both(compiled, functools.partial(Lit, "model")),
}


def layers_of(source: Any) -> dict[str, Any]:
    return {layer.name: layer for layer in source.layers}


@pytest.fixture(scope="module")
def plain() -> Any:
    torch.manual_seed(0)
    return open_source(Net())


@pytest.mark.parametrize("name", WRAPPERS)
def test_live_and_saved_names_are_those_of_the_model(name: str, plain: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = WRAPPERS[name](Net())
    state = model.state_dict()
    torch.save(state | {} if "lightning" not in name else lightning(state), tmp_path / "model.ckpt")
    for source in (open_source(model), open_source(tmp_path / "model.ckpt")):
        assert [layer.name for layer in source.layers] == [layer.name for layer in plain.layers]
        assert source.n_vectors == plain.n_vectors
        assert all(
            torch.equal(layers_of(source)[layer.name].read(), layer.read())
            for layer in plain.layers
        )


def lightning(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint as Lightning writes it."""
    return {
        "epoch": 1,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": dict(state),
        "optimizer_states": [],
    }


def test_a_lightning_module_of_several_parts_keeps_their_names(tmp_path: Path) -> None:
    model = Lit("generator", nn.Linear(4, 4))
    model.model = nn.Linear(4, 5)
    torch.save(lightning(model.state_dict()), tmp_path / "m.ckpt")
    for source in (open_source(model), open_source(tmp_path / "m.ckpt")):
        assert [layer.name for layer in source.layers] == ["generator", "model"]


NAMES = [
    # Names of a file, and what they become.
    (["model.layers.0.q.weight", "model.norm.weight"], None),
    (
        ["model.model.layers.0.q.weight", "model.lm_head.weight"],
        ["model.layers.0.q.weight", "lm_head.weight"],
    ),
    (
        ["module.model._orig_mod.a.weight", "module.model.b.weight"],
        ["model.a.weight", "model.b.weight"],
    ),
    (["_orig_mod._orig_mod.a.weight", "_orig_mod.b.weight"], ["a.weight", "b.weight"]),
    (["_forward_module._fsdp_wrapped_module.a.weight"], ["a.weight"]),
    (["module.module.a.weight", "module.module.b.weight"], ["a.weight", "b.weight"]),
    (["model.model.a.weight", "lm_head.weight"], None),
    (["net.0.weight", "net.2.weight"], None),
    # LeViT and others: a module of the model that is called so.
    (["layers.0.module.a.weight", "layers.0.module.b.weight", "layers.1.a.weight"], None),
    (["head.module.weight", "head.module.bias", "a.weight"], None),
    (
        ["encoder.module.a.weight", "encoder.module.b.weight", "x.weight"],
        ["encoder.a.weight", "encoder.b.weight", "x.weight"],
    ),
    (["encoder.module.a.weight", "encoder.b.weight", "x.weight"], None),
    (
        [
            "model.base_model.model.q.base_layer.weight",
            "model.base_model.model.q.lora_A.default.weight",
        ],
        ["q.weight", "q.lora_A.default.weight"],
    ),
    (["base_model.model.layers.0.q.weight", "base_model.lm_head.weight"], None),
]


@pytest.mark.parametrize(("names", "expected"), NAMES)
def test_names(names: list[str], expected: list[str] | None) -> None:
    assert clean_names(names) == (expected or names)


@pytest.mark.parametrize("name", ["LevitForImageClassification", "LlamaForCausalLM", "BertModel"])
def test_names_of_transformers_models_stay(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, name).config_class
    with torch.device("meta"):
        names = list(getattr(transformers, name)(config()).state_dict())
    assert clean_names(names) == names


EMPTY = torch.empty(0)


def transformer(**changed: Any) -> dict[str, Any]:
    """Two blocks and what is around them; the changed tensors are stored otherwise."""
    state = {
        "model.embed_tokens.weight": torch.randn(9, 8),
        **{f"model.layers.{i}.self_attn.q_proj.weight": torch.randn(8, 8) for i in range(2)},
        **{f"model.layers.{i}.mlp.down_proj.weight": torch.randn(8, 12) for i in range(2)},
        **{f"model.layers.{i}.input_layernorm.weight": torch.randn(8) for i in range(2)},
        **{f"model.layers.{i}.self_attn.q_proj.bias": torch.randn(8) for i in range(2)},
        "lm_head.weight": torch.randn(9, 8),
    }
    return {
        name: EMPTY.clone() if _matches(name, changed) else value for name, value in state.items()
    }


def _matches(name: str, words: Iterable[str]) -> bool:
    return any(word in name for word in words)


ZERO3: dict[str, tuple[tuple[str, ...], tuple[int, int]]] = {
    # What is stored empty, and the size that a row of it shows (0 x 0 where nothing tells).
    "everything": (("",), (0, 0)),
    "one block": (("layers.1.self_attn", "layers.1.input"), (8, 8)),
    "one layer": (("layers.0.mlp",), (8, 12)),
    "all of one kind": (("q_proj",), (0, 0)),
    "head": (("lm_head",), (0, 0)),
}


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("name", ZERO3)
def test_empty_weights_of_zero3_are_failed_rows(name: str, suffix: str, tmp_path: Path) -> None:
    words, size = ZERO3[name]
    state = transformer(**dict.fromkeys(words))
    path = tmp_path / f"model{suffix}"
    (torch.save if suffix == ".bin" else save_file)(state, path)
    source = open_source(path)
    whole = open_source(transformer())
    assert set(layers_of(source)) == set(layers_of(whole))
    assert source.n_vectors == whole.n_vectors
    for layer in source.layers:
        empty = state[f"{layer.name}.weight"].numel() == 0
        assert bool(layer.problem) == empty
        if empty:
            assert layer.problem is not None
            assert layer.problem.startswith("saved under ZeRO-3 without gathering")
            assert "zero_to_fp32" in str(layer.problem)
            assert layer.kind == layers_of(whole)[layer.name].kind
    first = next(layer for layer in source.layers if layer.problem)
    assert size == (first.rows, first.cols)


def test_a_live_model_that_zero3_has_split_is_failed_rows() -> None:
    model = Net()
    parameters: list[Any] = list(model.parameters())
    for parameter in parameters:
        parameter.ds_shape = parameter.shape
        parameter.ds_tensor = parameter.data.flatten()[:2].clone()
        parameter.data = torch.empty(0)
    layers = open_source(model).layers
    plain = open_source(Net()).layers
    assert [(layer.name, layer.rows, layer.cols) for layer in layers] == [
        (p.name, p.rows, p.cols) for p in plain
    ]
    assert all("ZeRO-3" in str(layer.problem) for layer in layers)


def test_gathered_parameters_of_zero3_are_read() -> None:
    model = Net()
    parameters: list[Any] = list(model.parameters())
    for parameter in parameters:
        parameter.ds_shape = parameter.shape
    assert not any(layer.problem for layer in open_source(model).layers)


@pytest.mark.parametrize("ending", ["_flat_param", "flat_param", "flat_param_0"])
def test_flat_parameters_of_fsdp_are_one_failed_row(ending: str, tmp_path: Path) -> None:
    state = {
        f"_fsdp_wrapped_module.layers.{i}._fsdp_wrapped_module.{ending}": torch.randn(40)
        for i in range(3)
    }
    torch.save(state, tmp_path / "m.pt")
    (layer,) = open_source(tmp_path / "m.pt").layers
    assert layer.name == f"layers.0.{ending}"
    assert "3 flat parameters of FSDP" in str(layer.problem)
    assert "FULL_STATE_DICT" in str(layer.problem)


def describe_in_two_processes(rank: int, port: int, use_orig_params: Any, queue: Any) -> None:
    """Put what a process sees of a model that FSDP has split onto a queue."""
    store = TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, store=store)
    net = nn.Sequential(nn.Linear(8, 6), nn.Sequential(nn.Linear(6, 4)))
    model = FullyShardedDataParallel(
        net, use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )
    source = open_source(model)
    queue.put([(layer.name, layer.rows, layer.cols, layer.problem) for layer in source.layers])
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("use_orig_params", [True, False])
def test_a_live_model_that_fsdp_has_split_is_failed_rows(use_orig_params: bool) -> None:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (port, use_orig_params, queue)
    spawn(describe_in_two_processes, given, nprocs=2)
    for rows in (queue.get(), queue.get()):
        sizes = [("0", 6, 8), ("1.0", 4, 6)] if use_orig_params else [("_flat_param", 0, 0)]
        assert [row[:3] for row in rows] == sizes
        assert all("summon_full_params" in row[3] for row in rows)


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize(
    "how", [torch.jit.script, lambda net: torch.jit.trace(net, torch.randn(2, 3, 9, 9))]
)
def test_scripted_modules_have_the_layers_of_the_module(how: Any, part: bool) -> None:
    net: Any = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(294, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        scripted = how(net)
    if part:
        net, scripted = nn.ModuleDict({"a": net}), nn.ModuleDict({"a": scripted})
    expected, found = open_source(net).layers, open_source(scripted).layers
    assert [layer.name for layer in found] == [layer.name for layer in expected]
    assert all(torch.equal(a.read(), b.read()) for a, b in zip(found, expected, strict=True))
