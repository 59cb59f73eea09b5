"""What a source states about its adapters besides their tensors, such as their scale."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from spectail.models.lazy_tensor import LazyTensor


@dataclass(frozen=True)
class Scale:
    """The factor by which an adapter's product is multiplied."""

    factor: float | None = None
    """None if it is not stated."""
    rank: int | None = None
    """The rank that goes with it; None if it is not stated."""
    note: str = ""
    """What a user should know about the adapter, for example that the model does not use it now."""


ScaleOf: TypeAlias = Callable[[str, str], Scale]
"""From the target's name and the adapter's name to its scale."""
BaseOf: TypeAlias = Callable[[str], "LazyTensor | None"]
"""From the target's name to the weight that the adapter changes; None if it is not available."""


def no_scale(target: str, adapter: str) -> Scale:
    """Return an unknown scale."""
    return Scale()


def no_base(target: str) -> LazyTensor | None:
    """Return no weight, because the base model is not available."""
    return None


@dataclass(frozen=True)
class Known:
    """Everything that a source states about its adapters."""

    scale_of: ScaleOf = no_scale
    base_of: BaseOf = no_base
    config: Mapping[str, Any] = field(default_factory=dict)


NOTHING_KNOWN = Known()
"""For sources that hold tensors only."""


def scale_from_config(config: Mapping[str, Any], target: str, adapter: str) -> Scale:
    """Read the scale from adapter_config.json, as peft, torchtune or MLX write it.

    In peft and torchtune it is alpha / r, or alpha / sqrt(r) for rsLoRA, with patterns for single
    layers; LoHa and LoKr use the key ``alpha``. In MLX it is ``lora_parameters.scale``, which the
    first releases multiplied by alpha / rank.
    """
    mlx = config.get("lora_parameters")
    if isinstance(mlx, Mapping):
        return _scale_of_mlx(mlx)
    # Patterns override the common rank and alpha for single layers.
    rank = _by_pattern(config.get("rank_pattern"), target, config.get("r"))
    alpha = _by_pattern(
        config.get("alpha_pattern"), target, config.get("lora_alpha", config.get("alpha"))
    )
    # Better unknown than wrong: the caller then adds a note.
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        return Scale()
    return Scale(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), rank)


def _scale_of_mlx(parameters: Mapping[str, Any]) -> Scale:
    """Read MLX's scale, multiplied by alpha / rank if there is an alpha."""
    scale, alpha, rank = (parameters.get(key) for key in ("scale", "alpha", "rank"))
    rank = rank if isinstance(rank, int) and rank > 0 else None
    if not isinstance(scale, int | float):
        return Scale(None, rank)
    if isinstance(alpha, int | float) and rank:
        scale = scale * alpha / rank
    return Scale(float(scale), rank)


def _by_pattern(patterns: object, target: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of the target's name, as in peft.

    AdaLoRA's rank pattern is of another kind (lists of the ranks that were kept), and matches
    nothing.
    """
    if isinstance(patterns, Mapping):
        for pattern, value in patterns.items():
            if re.match(rf"(?:.*\.)?(?:{pattern})$", target):
                return value
    return default
