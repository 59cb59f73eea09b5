"""Attacks by the JSON files beside a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import builders as b
from ..builders import Attack


def _stated(key: str, value: Any) -> Attack:
    """A small model whose configuration states this value."""
    config = {"hidden_size": 32, "num_attention_heads": 4, key: value}
    return lambda folder: b.model_with(folder, config)


def _quantised(method: str, key: str, value: Any) -> Attack:
    """A GPTQ weight whose quantiser states this value."""
    said = {"quant_method": method, "bits": 4, "group_size": 32, key: value}
    return lambda folder: _gptq(folder, said)


CONFIG: dict[str, Attack] = {
    "heads of -2": lambda d: b.model_with(d, {"num_attention_heads": -2, "hidden_size": 32}),
    "heads of 10^400": lambda d: b.model_with(
        d, {"num_attention_heads": 10**400, "hidden_size": 10**400}
    ),
    "hidden size of 1e400": lambda d: b.model_with(
        d, '{"hidden_size": 1e400, "num_attention_heads": 4}'
    ),
    "heads of true": lambda d: b.model_with(d, {"num_attention_heads": True, "hidden_size": 32}),
    "a text in place of a model type": lambda d: b.model_with(
        d, {"model_type": ["phi3"], "num_attention_heads": 4}
    ),
    "a configuration in itself, 500 times": lambda d: b.model_with(d, b.inside("text_config", 500)),
    "50,000 sub-configurations": lambda d: b.model_with(
        d,
        {f"a{i}_config": {} for i in range(50_000)},
        {f"layers.{i}.weight": (1, 1) for i in range(300)},
    ),
    "a module that is the folder itself": lambda d: _own_module(d),
    "sub-configurations of the same role": lambda d: b.model_with(
        d,
        {f"vision{i}_config": {"num_heads": i} for i in range(3000)},
        {"vision.qkv.weight": (96, 32)},
    ),
    "a configuration nested deep": lambda d: b.model_with(
        d, '{"a": ' + "[" * b.DEEP + "]" * b.DEEP + "}"
    ),
    "a configuration that is a list": lambda d: b.model_with(d, [1, 2]),
    "NaN bits": lambda d: b.model_with(
        d, '{"quantization_config": {"quant_method": "gptq", "bits": NaN}}'
    ),
    "group size of 0": lambda d: _gptq(d, {"quant_method": "gptq", "bits": 4, "group_size": 0}),
    "group size of -2^63": lambda d: _gptq(
        d, {"quant_method": "gptq", "bits": 4, "group_size": -(2**63)}
    ),
    "bits of 10^30": lambda d: _gptq(d, {"quant_method": "gptq", "bits": 10**30, "group_size": 32}),
    "bits of 0": lambda d: _gptq(d, {"quant_method": "awq", "bits": 0, "group_size": 32}),
    "bits that are a list": lambda d: _gptq(
        d, {"quant_method": "gptq", "bits": [4], "group_size": [32]}
    ),
    "quantisation that is a text": lambda d: _gptq(d, "gptq"),
    "block sizes of zero": lambda d: _blocks(d, [0, 0]),
    "block sizes of minus one": lambda d: _blocks(d, [-1, -1]),
    "block sizes that are texts": lambda d: _blocks(d, ["128", None]),
    "patterns of ignored layers that backtrack": lambda d: _gptq(
        d,
        {
            "quant_method": "compressed-tensors",
            "ignore": ["re:(a+)+$"],
            "config_groups": {"g": {"targets": ["re:(a+)+$"], "weights": {"num_bits": 4}}},
        },
    ),
    "a pipeline of paths outside": lambda d: _pipeline(d, {"../": ["a", "b"], "/etc": ["a", "b"]}),
    "a pipeline that holds itself": lambda d: _pipeline(d, {".": ["a", "b"], "": ["a", "b"]}),
    "modules that lie outside": lambda d: _modules(
        d, [{"path": "../x"}, {"path": "/etc"}, {"path": "\0"}]
    ),
    "modules that hold themselves": lambda d: _modules(
        d, [{"path": "."}, {"path": ""}, {"path": "./."}]
    ),
    "modules of a path of 100,000 letters": lambda d: _modules(d, [{"path": "x" * 100_000}]),
    **{
        f"{key} of {str(value)[:12]}": _stated(key, value)
        for key in ("num_attention_heads", "num_key_value_heads", "hidden_size", "head_dim")
        for value in (-1, 0, 1.5, 10**400, "4", [4, -4], {"a": 4})
    },
    **{
        f"{method} with {key} of {str(value)[:12]}": _quantised(method, key, value)
        for method in ("gptq", "awq", "bitsandbytes", "compressed-tensors")
        for key, value in (("bits", -1), ("bits", 3.7), ("bits", 10**400), ("group_size", -2))
    },
    "latest step elsewhere": lambda d: b.put(d, "latest", "../../etc\0").parent,
    "a snapshot with NUL": lambda d: _snapshot(d, "\0"),
}


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


def _own_module(folder: Path) -> Path:
    """A model whose list of modules leads back to it, three times."""
    (folder / "m").symlink_to(".")
    b.put(folder, "modules.json", json.dumps([{"path": "m"}] * 3))
    return b.model_with(folder, {})
