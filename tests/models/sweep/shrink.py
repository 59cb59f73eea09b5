"""Shrink a default configuration of transformers: few layers and few experts, sizes as they are.

Sizes need no shrinking on the meta device, and rules that look at shapes should see real ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

LAYERS = re.compile(
    r"^(?:n_layers?|num_layers?|num_(?:\w+_)?layers|(?:\w+_)?num_(?:\w+_)?(?:layers|blocks)|n_(?:text|audio)_layer"
    r"|(?:encoder|decoder|\w+)_(?:layers|depth)|depth|num_blocks|(?:\w+_)?n_layers?)$"
)
EXPERTS = re.compile(
    r"^(?:(?:\w+_)?(?:num|n)_(?:\w+_)?experts|moe_num_experts|num_experts_per_layer)$"
)
FIRST_DENSE = ("first_k_dense_replace", "num_dense_layers", "n_dense_layers", "first_dense_layers")
STEPS = re.compile(
    r"^(?:\w+_)?sparse_step$|^moe_layer_(?:freq|period)$|^interleave_moe_layer_step$"
)
MOST_LAYERS = 4
MOST_EXPERTS = 4


def shrunk(config: Any) -> Any:
    """The same configuration with few layers and experts,
    sub-configurations too; changed in place."""
    for part in (config, *sub_configs(config)):
        _shrink_one(part)
    return config


def sub_configs(config: Any) -> Iterator[Any]:
    """All nested configurations."""
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield value
            yield from sub_configs(value)


def _shrink_one(config: Any) -> None:
    values = {k: v for k, v in vars(config).items() if not k.startswith("_")}
    lengths = {v for k, v in values.items() if LAYERS.match(k) and _is_int(v) and v > MOST_LAYERS}
    keep = {n: max(MOST_LAYERS, _needed(values, n)) for n in lengths}
    for key, value in values.items():
        new = _smaller(key, value, keep)
        if new is not value:
            setattr(config, key, new)


def _smaller(key: str, value: Any, keep: Mapping[int, int]) -> Any:
    if _is_int(value):
        if key in FIRST_DENSE or STEPS.match(key):
            return min(value, 1)
        if LAYERS.match(key) and value in keep:
            return keep[value]
        if EXPERTS.match(key):
            return min(value, MOST_EXPERTS)
        return min(value, 2) if key.endswith(("experts_per_tok", "top_k", "topk_group")) else value
    if isinstance(value, list | tuple) and len(value) in keep:
        return value[: keep[len(value)]]
    return value


def _needed(values: Mapping[str, Any], layers: int) -> int:
    """How many of the first layers show every kind that a list per layer
    names, twice where it comes twice."""
    most = 0
    for value in values.values():
        if isinstance(value, list | tuple) and len(value) == layers:
            kinds = [str(item) for item in value]
            for kind in set(kinds):
                places = [i for i, other in enumerate(kinds) if other == kind]
                most = max(most, places[:2][-1] + 1)
    return most if most <= 12 else 0


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
