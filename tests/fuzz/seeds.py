"""Good files of every kind that spectail reads; the fuzzers damage copies of them."""

from __future__ import annotations

import io
import json
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import h5py
import numpy as np
import torch
from safetensors.torch import save

import spectail as st
from spectail.allocation.left_out import Code, LeftOut, Reason
from spectail.allocation.sensitivities import LayerSensitivity, Sensitivities
from spectail.pruning.kept_scores import KeptScores
from spectail.pruning.setting import Setting
from tests.conftest import weights
from tests.models import format_cases, quantised_cases, test_adapters_files
from tests.training.nets import net, train

from . import mutate
from .mutate import (
    Mutator,
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_msgpack,
    mutate_npy,
    mutate_onnx,
    mutate_values,
)
from .structure import (
    gguf_fields,
    hdf5_blocks,
    mutate_zip,
    pickle_opcodes,
    safetensors_entries,
    sometimes,
)


@dataclass(frozen=True)
class Seed:
    """The files of one good input, which of them are damaged and how, and what is opened."""

    files: dict[str, bytes]
    damaged: dict[str, Mutator]
    entry: str = "."
    """The file that is opened; the folder by default."""


def _written(write: Callable[[Path, Any], Path], values: Any) -> dict[str, bytes]:
    """The files that a writer leaves in a folder."""
    with TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(Path(name), values)
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


def _one(files: dict[str, bytes], mutator: Mutator) -> Seed:
    """A seed of one file, which is opened by its name."""
    (name,) = files
    return Seed(files, {name: mutator}, name)


def _tensors(state: dict[str, torch.Tensor]) -> bytes:
    """A safetensors file of tensors that may share memory."""
    plain = {key: value.contiguous().clone() for key, value in state.items()}
    return save(plain)


mutate_safetensors = sometimes(0.4, safetensors_entries, mutate.mutate_safetensors)
mutate_pickle = sometimes(0.6, pickle_opcodes, mutate_bytes)
mutate_gguf = sometimes(0.6, gguf_fields, mutate_bytes)
mutate_hdf5 = sometimes(0.5, hdf5_blocks, mutate_bytes)

STATE = format_cases.state(rows=24)
RUN_OF_CHOICE = {"model": "a", "method": ["wanda", {"variant": False}], "selection": ["b", 64]}
"""What an interrupted choice of eps depends on."""


def safetensors() -> Iterator[Seed]:
    files = _written(format_cases.write_safetensors, STATE)
    yield _one(files, mutate_safetensors)
    state = {f"model.layers.{i}.mlp.experts.down_proj": torch.ones(3, 16, 20) for i in range(2)}
    state |= {"conv.weight": torch.ones(16, 16, 2, 2), "x.weight": torch.ones(16, 16).bfloat16()}
    yield _one({"model.safetensors": _tensors(state)}, mutate_safetensors)


def _quantised(*, config: bool) -> Iterator[Seed]:
    for case in quantised_cases.CASES.values():
        if case.is_sub_byte or (config and not case.config):
            continue
        try:
            content = _tensors({f"{quantised_cases.Q}.{k}": v for k, v in case.tensors.items()})
        except (KeyError, ValueError, RuntimeError):
            continue  # a type that the format does not have
        files = {
            "model.safetensors": content,
            "config.json": json.dumps(dict(case.config)).encode(),
        }
        damaged: dict[str, Mutator] = (
            {"config.json": mutate_json} if config else {"model.safetensors": mutate_safetensors}
        )
        yield Seed(files, damaged)


def quantised() -> Iterator[Seed]:
    yield from _quantised(config=False)


LLAMA = {
    "model_type": "phi3", "vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2, "intermediate_size": 48,
    "num_local_experts": 2, "num_experts": 2, "rope_scaling": None, "tie_word_embeddings": True,
    "attn_config": {"kv_n_heads": 2, "attn_type": "multihead_attention"},
    "vision_config": {"num_heads": 4, "hidden_size": 32, "model_type": "clip"},
    "text_config": {"num_attention_heads": 4, "hidden_size": 32, "num_key_value_heads": [2, 2]},
}  # fmt: skip


def config_json() -> Iterator[Seed]:
    prefix = "model.layers.0."
    shapes = {
        "self_attn.qkv_proj.weight": (64, 32), "self_attn.o_proj.weight": (32, 32),
        "mlp.gate_up_proj.weight": (96, 32), "mlp.experts.gate_up_proj": (2, 32, 64),
        "mlp.experts.down_proj": (2, 32, 32), "attn.c_attn.weight": (32, 96),
        "attention.query_key_value.weight": (96, 32), "visual.blocks.0.attn.qkv.weight": (96, 32),
        "linear_attn.in_proj_qkvz.weight": (128, 32),
    }  # fmt: skip
    state = {prefix + name: torch.randn(shape) for name, shape in shapes.items()}
    for family in ("phi3", "gpt_neox", "falcon", "gpt_bigcode", "qwen3_next", "chatglm", "mpt"):
        config = json.dumps(LLAMA | {"model_type": family, "multi_query": family == "falcon"})
        files = {"model.safetensors": _tensors(state), "config.json": config.encode()}
        yield Seed(files, {"config.json": mutate_json})
    yield from _quantised(config=True)


def index() -> Iterator[Seed]:
    names = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    files = {names[0]: _tensors({"a.weight": torch.ones(16, 16)})}
    files[names[1]] = _tensors({"b.weight": torch.ones(16, 20)})
    where: dict[str, Any] = {"metadata": {"total_size": 2304}, "weight_map": {"a.weight": names[0]}}
    where["weight_map"]["b.weight"] = names[1]
    files["model.safetensors.index.json"] = json.dumps(where).encode()
    yield Seed(files, {"model.safetensors.index.json": mutate_json})
    yield Seed(files, {"model.safetensors.index.json": mutate_json}, "model.safetensors.index.json")


def folders() -> Iterator[Seed]:
    """JSON files beside models: pipelines, sentence-transformers, other quantisers' files."""
    file = _written(format_cases.write_safetensors, STATE)["model.safetensors"]
    pipeline = {"_class_name": "P", "unet": ["diffusers", "UNet"], "vae": ["diffusers", "VAE"]}
    files = {"unet/diffusion_pytorch_model.safetensors": file}
    files |= {"vae/diffusion_pytorch_model.safetensors": file}
    files["model_index.json"] = json.dumps(pipeline).encode()
    yield Seed(files, {"model_index.json": mutate_json})
    modules = [{"idx": 0, "path": "", "type": "T"}, {"idx": 1, "path": "2_Dense", "type": "D"}]
    files = {"model.safetensors": file, "2_Dense/model.safetensors": file}
    files["modules.json"] = json.dumps(modules).encode()
    yield Seed(files, {"modules.json": mutate_json})
    said = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": None, "bits": 4}}
    files = {"model.safetensors": file, "hf_quant_config.json": json.dumps(said).encode()}
    yield Seed(files, {"hf_quant_config.json": mutate_json})


def adapters() -> Iterator[Seed]:
    base = {"model.layers.0.q_proj.weight": torch.randn(16, 16)}
    for number, case in enumerate(test_adapters_files.CASES.values()):
        name = test_adapters_files.NAMES[number % 4]
        config = case.config or {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
        config = config | {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {".*k_proj": 3}}
        files = {name: _tensors(case.state), "adapter_config.json": json.dumps(config).encode()}
        yield Seed(files, {name: mutate_safetensors, "adapter_config.json": mutate_json})
    a, b = torch.randn(4, 16), torch.randn(16, 4)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "base"}
    config |= {"use_dora": True, "use_rslora": False, "fan_in_fan_out": False, "bias": "none"}
    prefix = "base_model.model.model.layers.0.q_proj."
    state = {f"{prefix}lora_A.weight": a, f"{prefix}lora_B.weight": b}
    state[f"{prefix}lora_magnitude_vector"] = torch.ones(16)
    files = {"adapter_model.safetensors": _tensors(state), "base/model.safetensors": _tensors(base)}
    files["adapter_config.json"] = json.dumps(config).encode()
    yield Seed(files, dict.fromkeys(["adapter_config.json"], mutate_json))
    flat = {"unet.r": 3, "unet.lora_alpha": 6, "unet.alpha_pattern": {"to_k": 1.5}}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(flat)}
    state = {f"unet.to_k.lora_{side}.weight": x for side, x in (("A", a), ("B", b))}
    content = save(state, metadata=metadata)
    yield _one({"pytorch_lora_weights.safetensors": content}, mutate_safetensors)


def _write_more_gguf(folder: Path, _: Any) -> Path:
    """A llama with quantised types, per-head order, stacked experts and arrays in its metadata."""
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_head_count(4)
    writer.add_head_count_kv([2, 2])
    writer.add_key_length(8)
    writer.add_embedding_length(32)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    values = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    kinds = gguf.GGMLQuantizationType
    for block, kind in enumerate((kinds.Q8_0, kinds.Q4_0)):
        packed = gguf.quants.quantize(values, kind)
        for name in ("attn_q", "ffn_up"):
            writer.add_tensor(f"blk.{block}.{name}.weight", packed, raw_dtype=kind)
    writer.add_tensor("blk.0.ffn_gate_exps.weight", np.ones((2, 16, 32), np.float16))
    writer.add_tensor("blk.2.attn_k.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def gguf_files() -> Iterator[Seed]:
    yield _one(_written(format_cases.write_gguf, STATE), mutate_gguf)
    yield _one(_written(_write_more_gguf, None), mutate_gguf)


def torch_files() -> Iterator[Seed]:
    yield _one(_written(format_cases.write_torch, STATE), mutate_zip)
    q = torch.quantize_per_channel(
        torch.randn(16, 16), torch.ones(16).double(), torch.zeros(16).long(), 0, torch.qint8
    )
    training = {"epoch": 3, "state_dict": {"a.weight": torch.randn(16, 20).T, "q.weight": q}}
    training |= {"optimizer": {"state": {0: {"m": torch.ones(4)}}, "param_groups": [{"lr": 0.1}]}}
    training |= {"pytorch-lightning_version": "2.0", "sparse": torch.eye(3).to_sparse()}
    stream = io.BytesIO()
    torch.save(training, stream)
    yield _one({"model.ckpt": stream.getvalue()}, mutate_zip)


def pickles() -> Iterator[Seed]:
    yield _one(_written(format_cases.write_old_torch, STATE), mutate_pickle)
    arrays = {"a.weight": np.ones((16, 20), np.float32), "b": {"c.weight": np.ones((20, 16))}}
    for protocol in (2, 4):
        yield _one({"model.pkl": pickle.dumps(arrays, protocol)}, mutate_pickle)


def distcp() -> Iterator[Seed]:
    files = _written(format_cases.write_distributed, STATE)
    damaged: dict[str, Mutator] = {".metadata": mutate_pickle}
    damaged |= {name: mutate_zip for name in files if name.endswith(".x")}
    damaged |= {name: mutate_bytes for name in files if name.endswith(".distcp")}
    yield Seed(files, damaged)


def npy() -> Iterator[Seed]:
    stream = io.BytesIO()
    np.save(stream, STATE["layers.0.weight"])
    yield _one({"weight.npy": stream.getvalue()}, mutate_npy)
    yield _one(_written(format_cases.write_numpy, STATE), mutate_zip)


def hdf5() -> Iterator[Seed]:
    files = _written(format_cases.write_keras, STATE)
    yield _one(files, mutate_hdf5)
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_dataset("layers/dense/vars/0", data=np.ones((16, 24)), chunks=(4, 4))
        file.create_dataset("layers/x/vars/0", data=np.ones((24, 16)), compression="gzip")
    yield _one({"model.weights.h5": stream.getvalue()}, mutate_hdf5)
    packed = io.BytesIO()
    import zipfile

    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("model.weights.h5", stream.getvalue())
    yield _one({"model.keras": packed.getvalue()}, mutate_zip)


def flax() -> Iterator[Seed]:
    yield _one(_written(format_cases.write_flax, STATE), mutate_msgpack)


def onnx_files() -> Iterator[Seed]:
    yield _one(_written(format_cases.write_onnx, STATE), mutate_onnx)


@cache
def analysis() -> st.Analysis:
    """An analysis of a toy transformer with every kind of row."""
    state: dict[str, Any] = dict(weights(blocks=5))
    state["model.layers.0.mlp.bad_proj.weight"] = torch.full((96, 96), float("nan"))
    return st.analyze(state, full_spectrum=True, quantization_errors=True)


def analyses() -> Iterator[Seed]:
    content = json.dumps(analysis().to_dict()).encode()
    yield Seed({"analysis.json": content}, {"analysis.json": mutate_json})


def journals() -> Iterator[Seed]:
    run, layers = analysis().run, analysis().layers
    lines = [{"run": run.to_dict()}, *(layer.to_dict() for layer in layers[:8])]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    yield Seed({".progress.jsonl": content}, {".progress.jsonl": mutate_lines})


def shards() -> Iterator[Seed]:
    """The two parts of a run, which ``spectail merge`` reads."""
    files: dict[str, bytes] = {}
    with TemporaryDirectory() as name:
        for shard in ("1/2", "2/2"):
            st.analyze(dict(weights(blocks=2)), out=name, shard=shard)
        for path in sorted(Path(name).rglob("*.json*")):
            files[str(path.relative_to(name))] = path.read_bytes()
    yield Seed(files, dict.fromkeys(files, mutate_json))


def run_of_journal() -> Any:
    """The run that the journal belongs to."""
    return analysis().run


def allocations() -> Iterator[Seed]:
    for target, budget in (("sparsity", 0.5), ("bits", 4), ("lr", 1e-3), ("weight-decay", 0.1)):
        made = st.allocate(analysis(), target=target, budget=budget, missing="mean")
        content = json.dumps(made.to_dict()).encode()
        yield Seed(
            {"allocation.json": content}, {"allocation.json": mutate_json}, "allocation.json"
        )


def sensitivities() -> Iterator[Seed]:
    """Sensitivities of all layers that ``allocate`` takes, but two that are not measured yet."""
    layers = [x for x in analysis().layers if x.status == "ok"]
    for done in (len(layers), len(layers) - 2):
        found = Sensitivities(
            layers=tuple(
                LayerSensitivity(x.name, x.rows, x.cols, x.numel, 0.1 * i if i < done else None)
                for i, x in enumerate(layers)
            ),
            settings={"samples": 2, "seq_len": 256, "noise": 0.05, "seed": 0},
            source="model",
            fingerprint="a",
            left_out=(LeftOut("lm_head", Reason(Code.HEAD, "the output head")),),
        )
        content = json.dumps(found.to_dict()).encode()
        yield Seed({"s.json": content}, {"s.json": mutate_json}, "s.json")


def choices() -> Iterator[Seed]:
    """The scores of an interrupted choice of eps."""
    scores = {Setting(eps): 30.0 * eps for eps in (0.1, 0.2, 0.3)} | {Setting(0.4): math.inf}
    with TemporaryDirectory() as name:
        path = Path(name) / "out.choice.json"
        kept = KeptScores.open(path, RUN_OF_CHOICE)
        for setting, score in scores.items():
            kept.add(setting, score)
        content = path.read_bytes()
    yield Seed({path.name: content}, {path.name: mutate_json}, path.name)


@cache
def trained() -> tuple[Any, Any, st.Balancer]:
    """A small network that was trained with a Balancer."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 5)
    return model, optimizer, balancer


def states() -> Iterator[Seed]:
    content = json.dumps(trained()[2].state_dict()).encode()
    yield Seed({"state.json": content}, {"state.json": mutate_values}, "state.json")


def histories() -> Iterator[Seed]:
    content = json.dumps(trained()[2].history.to_dict()).encode()
    yield Seed({"history.json": content}, {"history.json": mutate_json})
