"""What a source states about its adapters besides their tensors, such as their scale."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeGuard

from spectail.basics.checks import is_whole
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
    try:
        rank = _by_pattern(config.get("rank_pattern"), target, config.get("r"))
        alpha = _by_pattern(
            config.get("alpha_pattern"), target, config.get("lora_alpha", config.get("alpha"))
        )
    except _PatternError as error:
        return Scale(note=f"its scale is not known: {error}")
    # Better unknown than wrong: the caller then adds a note.
    if not _is_rank(rank) or not _is_factor(alpha):
        return Scale()
    return Scale(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), rank)


def _is_rank(value: Any) -> bool:
    """Whether a value can be a rank."""
    return is_whole(value) and value < 2**31


def _is_factor(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that can be multiplied by; JSON may hold one of any size."""
    return isinstance(value, int | float) and abs(value) <= 1e30


def _scale_of_mlx(parameters: Mapping[str, Any]) -> Scale:
    """Read MLX's scale, multiplied by alpha / rank if there is an alpha."""
    scale, alpha, rank = (parameters.get(key) for key in ("scale", "alpha", "rank"))
    rank = rank if _is_rank(rank) else None
    if not _is_factor(scale):
        return Scale(None, rank)
    if _is_factor(alpha) and rank:
        scale = scale * alpha / rank
    return Scale(float(scale), rank)


_NAME = re.compile(r"[\w.]+")
"""A pattern that is simply a name."""
_MOST_PATTERNS = 100
"""The most patterns that are no names. Each is matched against every target."""


class _PatternError(ValueError):
    """A pattern cannot be read; the message names it."""


def _by_pattern(patterns: object, target: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of the target's name, as in peft.

    AdaLoRA's rank pattern is of another kind (lists of the ranks that were kept), and matches
    nothing.
    """
    if not isinstance(patterns, Mapping):
        return default
    ends = {target, *(target[dot.end() :] for dot in re.finditer(r"\.", target))}
    tried = 0
    for pattern, value in patterns.items():
        if pattern in ends:
            return value
        if not _NAME.fullmatch(pattern):
            tried += 1
            if tried > _MOST_PATTERNS:
                raise _PatternError(f"its configuration has over {_MOST_PATTERNS} patterns")
            if _matches(pattern, target):
                return value
    return default


def _matches(pattern: str, target: str) -> bool:
    """Whether a regular expression matches the end of a name, from a dot or the start on."""
    # Python's own matcher may take for ever on a pattern made for that. That of Arrow (RE2) takes
    # time in proportion to the name, and lacks only look-around and back-references.
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        whole = rf"^(?:.*\.)?(?:{pattern})$"
        return bool(pc.match_substring_regex(pa.scalar(target), pattern=whole).as_py())
    except (pa.ArrowInvalid, UnicodeEncodeError):
        raise _PatternError(
            f"the pattern {pattern[:60]!r} of its configuration cannot be read"
        ) from None
