"""LoRA adapters: the change they make to a weight, computed from its factors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectail.models.lazy_tensor import Index, LazyTensor, parameters_of, piece_of, unreadable

_FACTOR = re.compile(r"^(?:(.*)\.)?lora_(embedding_)?(A|B)(?:\.(.+))?$")


@dataclass(frozen=True)
class Scale:
    """What multiplies B A, and the rank that the configuration gives (None: not known)."""

    factor: float = 1.0
    rank: int | None = None


ScaleOf = Callable[[str, str], Scale]
"""From the target's name and the adapter's name to its scale."""


def no_scale(target: str, adapter: str) -> Scale:
    """Take the factors as they are: nothing is known about the adapter."""
    return Scale()


def scale_from_config(config: Mapping[str, Any], target: str, adapter: str) -> Scale:
    """Read peft's adapter_config.json: lora_alpha / r, or / sqrt(r) for rslora, with patterns by layer."""
    rank = _by_pattern(config.get("rank_pattern"), target, config.get("r"))
    alpha = _by_pattern(config.get("alpha_pattern"), target, config.get("lora_alpha"))
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        return Scale()
    return Scale(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), rank)


def _by_pattern(patterns: object, target: str, default: Any) -> Any:
    """Find the value of the first pattern that matches the end of the target's name, as peft does."""
    if isinstance(patterns, Mapping):
        for pattern, value in patterns.items():
            if re.match(rf"(?:.*\.)?(?:{pattern})$", target):
                return value
    return default


def join_factors(tensors: Iterable[LazyTensor], scale_of: ScaleOf) -> list[LazyTensor]:
    """Replace each pair of factors by one tensor ``<target>.lora`` that computes scaling * B A."""
    pairs: dict[tuple[str, str, str], dict[str, LazyTensor]] = {}
    order: list[LazyTensor | tuple[str, str, str]] = []
    for stored in tensors:
        match = _FACTOR.match(stored.name)
        if match is None:
            order.append(stored)
            continue
        adapter = re.sub(r"(?:^|\.)weight$", "", match[4] or "")
        if adapter == "bias" or adapter.endswith(".bias"):
            order.append(stored)
            continue
        key = (match[1] or "", adapter, match[2] or "")
        if key not in pairs:
            pairs[key] = {}
            order.append(key)
        pairs[key][match[3]] = stored
    adapters: dict[str, int] = {}
    for target, _, _ in pairs:
        adapters[target] = adapters.get(target, 0) + 1
    result = []
    for item in order:
        if isinstance(item, LazyTensor):
            result.append(item)
            continue
        target, adapter, embedding = item
        name = ".".join(filter(None, (target, "lora", adapter if adapters[target] > 1 else "")))
        result.append(_delta(name, pairs[item], scale_of(target, adapter), embedding=bool(embedding)))
    return result


def _delta(name: str, pair: Mapping[str, LazyTensor], scale: Scale, *, embedding: bool) -> LazyTensor:
    """Describe the change that two factors make, or say why they make none."""
    a, b = pair.get("A"), pair.get("B")
    if a is None or b is None:
        there = a or b
        missing = "lora_A" if a is None else "lora_B"
        shape = there.shape if there else ()
        return unreadable(name, shape, "float64", f"the factor {missing} is missing", layout="lora")
    problem = a.problem or b.problem
    shape = (b.shape[0], *a.shape[1:])
    if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[0] != b.shape[1]:
        problem = f"factors of shapes {b.shape} and {a.shape} do not multiply"
    elif scale.rank is not None and a.shape[0] != scale.rank:
        problem = (
            f"adapter of a fused parameter: its factors have rank {a.shape[0]}, its configuration says {scale.rank}"
        )
    if embedding:
        shape = shape[::-1]
    read = partial(_read_delta, a, b, scale.factor, embedding)
    return LazyTensor(name, shape, "float64", read, "lora", problem, parameters=parameters_of((a, b)))


def _read_delta(a: LazyTensor, b: LazyTensor, factor: float, embedding: bool, index: Index) -> Tensor:
    """Compute scaling * B A in float64; in an embedding's stored orientation where it is one."""
    down, up = a.read(()).to(torch.float64), b.read(()).to(torch.float64)
    delta = torch.tensordot(up.flatten(1), down, dims=1) * factor
    return piece_of(delta.T if embedding else delta, index)
