"""Attacks by the headers of safetensors files and by indices of shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from .. import builders as b
from ..builders import Attack, one_file


def _st(make: Callable[[], bytes]) -> Attack:
    """An attack of one safetensors file."""
    return one_file("model.safetensors", make)


SQUARE = b.entry([16, 16], 0, 1024)
SAFETENSORS: dict[str, Attack] = {
    "a superscript digit in a name": _st(
        lambda: b.safetensors(
            {"layers.².a.weight": SQUARE, "layers.1.a.weight": b.entry([0, 4], 1024, 1024)},
            bytes(1024),
        )
    ),
    "digits of other scripts": _st(
        lambda: b.safetensors(
            {"layers.٣.weight": SQUARE, "layers.௧²³.w.weight": b.entry([0], 1024, 1024)},
            bytes(1024),
        )
    ),
    "a number of 5,000 digits in a name": _st(
        lambda: b.safetensors({f"layers.{'9' * 5000}.a.weight": SQUARE}, bytes(1024))
    ),
    "a negative zero-sized tensor": _st(lambda: b.safetensors({"a": b.entry([-1, 0], 0, 0)})),
    "an empty tensor of 2^62 rows": _st(
        lambda: b.safetensors({"a.weight": b.entry([2**62, 0], 0, 0)})
    ),
    "an empty tensor of 10^400 rows": _st(
        lambda: b.safetensors({"a.weight": b.entry([10**400, 0], 0, 0)})
    ),
    "an empty stack of 2^40 experts": _st(
        lambda: b.safetensors(
            {"model.layers.0.mlp.experts.down_proj": b.entry([b.HUGE, 0, 64], 0, 0)}
        )
    ),
    "an empty stack of 2^40 matrices": _st(
        lambda: b.safetensors(
            {"model.layers.0.mlp.experts.gate_up_proj": b.entry([b.HUGE, 64, 0], 0, 0)}
        )
    ),
    "shapes that multiply to more than 64 bits": _st(
        lambda: b.safetensors({"a.weight": b.entry([2**33, 2**33], 0, 1024)}, bytes(1024))
    ),
    "200 dimensions": _st(
        lambda: b.safetensors({"a.weight": b.entry([1] * 200 + [16, 16], 0, 1024)}, bytes(1024))
    ),
    "a dimension that is true": _st(
        lambda: b.safetensors({"a.weight": b.entry([True, 256], 0, 1024)}, bytes(1024))
    ),
    "offsets that are texts": _st(
        lambda: b.safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": "04"}}, bytes(4))
    ),
    "offsets that are floats": _st(
        lambda: b.safetensors(
            {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}, bytes(4)
        )
    ),
    "offsets that are infinite": _st(
        lambda: b.safetensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e400]}}', bytes(4)
        )
    ),
    "a header nested deep": _st(
        lambda: b.safetensors(b'{"a":' + b"[" * b.DEEP + b"]" * b.DEEP + b"}")
    ),
    "metadata that is a list": _st(
        lambda: b.safetensors({"__metadata__": [1], "a.weight": SQUARE}, bytes(1024))
    ),
    "metadata nested deep in a text": _st(
        lambda: b.safetensors(
            {"__metadata__": {"lora_adapter_metadata": "[" * b.DEEP}, "q.lora_A.weight": SQUARE},
            bytes(1024),
        )
    ),
    "a type that is a list": _st(
        lambda: b.safetensors({"a": b.entry([1], 0, 4, ["F32"])}, bytes(4))
    ),
    "a header of spaces": _st(lambda: b.safetensors(b"{" + b" " * 10**6 + b"}")),
    "3,000 empty tensors": _st(
        lambda: b.safetensors({f"layers.{i}.a.weight": b.entry([0, 4], 0, 0) for i in range(3_000)})
    ),
    "names of dots only": _st(
        lambda: b.safetensors(
            {"." * 60_000: SQUARE, "." * 59_999: b.entry([0], 1024, 1024)}, bytes(1024)
        )
    ),
    "a name of 3,000 components that repeat": _st(
        lambda: b.safetensors(
            {
                "model." * 3000 + "weight": SQUARE,
                "model." * 2999 + "weight": b.entry([0], 1024, 1024),
            },
            bytes(1024),
        )
    ),
    "names that a wrapper's pattern may not match": _st(
        lambda: b.safetensors(
            {
                "base_model.model." + "a_A" * 5000 + ".x": SQUARE,
                "base_model.model." + "lora_" * 5000: b.entry([0], 1024, 1024),
            },
            bytes(1024),
        )
    ),
    "100,000 underlines in the name of integers": _st(
        lambda: b.safetensors({"_" * 100_000: b.entry([16, 16], 0, 256, "I8")}, bytes(256))
    ),
    "scales within scales": _st(
        lambda: b.safetensors({"a." + "scale." * 16_000 + "scale": SQUARE}, bytes(1024))
    ),
    "names of 33,000 numbers": _st(
        lambda: b.safetensors({f"{'1.a' * 33_000}{i}": b.entry([0], 0, 0) for i in range(40)})
    ),
    "20,000 flat parameters": _st(
        lambda: b.safetensors(
            {f"m.{i}.flat_param": b.entry([1], 4 * i, 4 * i + 4) for i in range(20_000)},
            bytes(80_000),
        )
    ),
    "6,000 integers beside 6,000 scales": _st(
        lambda: b.safetensors(
            {f"w{i}": b.entry([2, 2], 4 * i, 4 * i + 4, "I8") for i in range(6_000)}
            | {f"x{i}_scale": b.entry([0], 24_000, 24_000) for i in range(6_000)},
            bytes(24_000),
        )
    ),
    "an empty name": _st(
        lambda: b.safetensors({"": SQUARE, ".weight": b.entry([0], 1024, 1024)}, bytes(1024))
    ),
}

INDEX: dict[str, Attack] = {
    "a shard above by a link": lambda d: _linked_shard(d),
    "a shard name with NUL": lambda d: b.put(
        d, "m.index.json", json.dumps({"weight_map": {"a": "x\0.safetensors"}})
    ),
    "a shard name of 100,000 letters": lambda d: b.put(
        d, "m.index.json", json.dumps({"weight_map": {"a": "x" * 100_000}})
    ),
    "an index nested deep": lambda d: b.put(d, "m.index.json", '{"weight_map": ' + "[" * b.DEEP),
    "an index that is its own shard": lambda d: b.put(
        d, "m.index.json", json.dumps({"weight_map": {"a": "m.index.json"}})
    ),
    "shards of lone surrogates": lambda d: b.put(
        d, "m.index.json", '{"weight_map": {"a": "\\ud800"}}'
    ),
    "shards that are numbers and texts": lambda d: b.put(
        d, "m.index.json", '{"weight_map": {"a": 1, "b": "x"}}'
    ),
}


def _linked_shard(folder: Path) -> Path:
    """A shard's name that leads to a folder."""
    (folder / "x.safetensors").mkdir()
    return b.put(folder, "m.index.json", json.dumps({"weight_map": {"a": "x.safetensors"}}))
