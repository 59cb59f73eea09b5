"""Attacks by adapters and their configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import builders as b
from ..builders import Attack


def _stated(key: str, value: Any) -> Attack:
    """A LoRA whose configuration states this value."""
    return lambda folder: b.adapter(folder, b.LORA, {key: value})


ADAPTERS: dict[str, Attack] = {
    "a LoRA that asks for 8 TB": lambda d: b.adapter(
        d, {"lora_A.weight": (0, 2**20), "lora_B.weight": (2**20, 0)}, {"r": 1}
    ),
    "a LoRA of rank 1 that asks for 80 GB": lambda d: b.adapter(
        d, {"lora_A.weight": (1, 100_000), "lora_B.weight": (100_000, 1)}, {"r": 1}
    ),
    "a LoHa that asks for 80 GB": lambda d: b.adapter(
        d,
        {
            "hada_w1_a": (100_000, 1),
            "hada_w1_b": (1, 100_000),
            "hada_w2_a": (100_000, 1),
            "hada_w2_b": (1, 100_000),
        },
    ),
    "a LoKr that asks for 2 TB": lambda d: b.adapter(
        d, {"lokr_w1": (700, 700), "lokr_w2": (700, 700)}
    ),
    "a core that asks for 32 GB": lambda d: b.adapter(
        d,
        {
            "lora_down.weight": (1, 2000, 1, 1),
            "lora_mid.weight": (1, 1, 32, 32),
            "lora_up.weight": (2000, 1, 1, 1),
        },
    ),
    "6,000 adapters of one weight, and 6,000 magnitudes": lambda d: b.adapter(
        d,
        {f"lora_A.a{i}.weight": (4, 1) for i in range(6_000)}
        | {f"lora_magnitude_vector.b{i}.weight": (1,) for i in range(6_000)},
    ),
    "a million experts": lambda d: b.adapter(
        d,
        {"lora_A.weight": (1_000_000, 1), "lora_B.weight": (1, 1_000_000)},
        {"r": 1, "target_parameters": ["q_proj.down_proj"]},
    ),
    "a million stacked experts": lambda d: b.adapter(
        d, {"lora_A.weight": (1_000_000, 1, 1), "lora_B.weight": (1_000_000, 1, 1)}, {"r": 1}
    ),
    "an OFT whose blocks are 40 GB": lambda d: _oft(d, (1, 0), 100_000),
    "a rank pattern that backtracks for ever": lambda d: _pattern(
        d, {"(a+)+b": 4, "(.*)*x": 3, r"(\w+\s?)+$": 2}
    ),
    "an alpha pattern that is no pattern": lambda d: _pattern(d, {"(": 4, "[": 3, "*": 2, "\\": 1}),
    "a pattern that repeats a billion times": lambda d: _pattern(d, {"(a{1,1000}){1,1000}b": 4}),
    "20,000 patterns": lambda d: _pattern(d, {f"layers.{i}.(q|k)_proj": 4 for i in range(20_000)}),
    "a rank of 10^400": lambda d: b.adapter(d, b.LORA, {"r": 10**400, "use_rslora": True}),
    "an alpha of 10^400": lambda d: b.adapter(d, b.LORA, {"lora_alpha": 10**400}),
    "a rank of 0": lambda d: b.adapter(d, b.LORA, {"r": 0}),
    "a rank of true": lambda d: b.adapter(d, b.LORA, {"r": True, "lora_alpha": True}),
    "experts of rank -1": lambda d: b.adapter(
        d, b.LORA, {"r": -1, "target_parameters": ["experts"]}
    ),
    "MLX's scale of 10^400": lambda d: b.adapter(
        d, b.LORA, {"lora_parameters": {"scale": 10**400, "rank": 3, "alpha": 1}}
    ),
    "10^9 terms of a series": lambda d: _oft(d, (8, 6), 32, {"num_cayley_neumann_terms": 10**9}),
    "terms that are a text": lambda d: _oft(d, (8, 6), 32, {"num_cayley_neumann_terms": "x"}),
    "a base that is the adapter itself": lambda d: b.adapter(
        d, b.LORA, {"use_dora": True, "base_model_name_or_path": "."}
    ),
    "a base with NUL": lambda d: b.adapter(
        d, b.LORA, {"use_dora": True, "base_model_name_or_path": "\0"}
    ),
    "a base of 100,000 letters": lambda d: b.adapter(
        d, b.LORA, {"base_model_name_or_path": "x" * 100_000, "use_dora": True}
    ),
    "a base in the home of nobody": lambda d: b.adapter(
        d, b.LORA, {"base_model_name_or_path": "~nobody_at_all/x", "use_dora": True}
    ),
    "an alpha that is a matrix": lambda d: b.adapter(d, b.LORA | {"alpha": (16, 16)}),
    "a peft type that is a list": lambda d: b.adapter(d, b.LORA, {"peft_type": ["LORA"]}),
    "a peft type that is a pattern": lambda d: b.adapter(d, b.LORA, {"peft_type": "(a+)+$[" * 50}),
    **{
        f"{key}: {str(value)[:24]}": _stated(key, value)
        for key, value in (
            ("r", -1),
            ("r", 1.5),
            ("lora_alpha", float("nan")),
            ("lora_alpha", "8"),
            ("rank_pattern", {"q_proj": -1}),
            ("rank_pattern", {"q_proj": 10**400}),
            ("rank_pattern", [4]),
            ("alpha_pattern", {"q_proj": "x"}),
            ("use_rslora", "no"),
            ("target_parameters", [3]),
            ("lora_parameters", [1]),
            ("lora_parameters", {"scale": [], "rank": -4}),
        )
    },
    "two bases that name each other": lambda d: _circle(d),
}


def _pattern(folder: Path, patterns: dict[str, Any]) -> Path:
    """An adapter of layers with long names, with these patterns."""
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(20):
        name = f"base_model.model.layers.{layer}.{'a' * 60}.q_proj."
        shapes |= {f"{name}lora_A.weight": (4, 16), f"{name}lora_B.weight": (16, 4)}
    b.put(folder, "adapter_model.safetensors", b.tensors(shapes))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    config |= {"rank_pattern": patterns, "alpha_pattern": patterns}
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
        b.adapter(
            folder / name, b.LORA, {"use_dora": True, "base_model_name_or_path": f"../{other}"}
        )
    return folder / "a"
