"""Which layers take part in an allocation, and why the others do not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spectail.allocation.towers import beside_language_model
from spectail.errors import AllocationError
from spectail.models.naming.blocks import unit_of
from spectail.models.naming.select import matches
from spectail.models.source import NOT_A_WEIGHT
from spectail.results.records import LayerRecord

OUTSIDE_KINDS = {
    "embedding": "an embedding",
    "head": "the output head",
    "router": "a router",
    "lora": "a LoRA delta",
}
"""Kinds that stay out unless included, and what the reason calls them."""

DEPTHWISE = "a depth-wise convolution or one of a single channel: each output has only its kernel's few weights"
"""Reason of the short convolutions in Mamba, LFM2 or Qwen3-Next, and of those in MobileNet or
ConvNeXt."""
SPECTRAL = "complex weights of a Fourier layer: no sparsity or bit width is defined for them"

_SHORT_CONVOLUTION = re.compile(
    r"(?:^|\.)(?:\w*conv_?1d|(?:short)?conv\.conv|\w*dw_?conv|\w*depth_?wise\w*)$", re.IGNORECASE
)
_SHORT = 16
"""Most weights per output of a convolution that such a name says to be depth-wise, in formats that
store no groups."""

_NORM = re.compile(r"(?:^|\.)(?:\w*norm\d*|ln\w*)$", re.IGNORECASE)


@dataclass(frozen=True)
class LeftOut:
    """A layer that gets no value, and why."""

    name: str
    reason: str


def describe_left_out(layers: Iterable[LeftOut]) -> list[str]:
    """One line for each reason, with the first layers that it is of.

    >>> describe_left_out([LeftOut("wte", "an embedding"), LeftOut("wpe", "an embedding")])
    ['left out, an embedding: wte, wpe']
    """
    reasons: dict[str, list[str]] = {}
    for layer in layers:
        reasons.setdefault(layer.reason, []).append(layer.name)
    return [
        f"left out, {reason}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for reason, names in reasons.items()
    ]


@dataclass(frozen=True)
class Coverage:
    """The layers that take part, in the model's order, and the others."""

    layers: tuple[LayerRecord, ...]
    left_out: tuple[LeftOut, ...]


def cover(
    layers: Sequence[LayerRecord],
    *,
    inside_blocks: bool,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Coverage:
    """Choose the layers that take part.

    Embeddings, the head, norms, routers and LoRA deltas stay out. With ``inside_blocks``, for
    compression, so do layers in no repeated block, the towers beside the language model of a
    multi-modal model, depth-wise convolutions and complex spectral weights. ``include`` globs add
    layers that would stay out, ``exclude`` globs leave layers out. Parameters that are no weight
    matrices stay out whatever the globs say.

    Raises:
        AllocationError: a glob that changes nothing, or no layer that takes part.

    """
    reasons = _outside(layers, inside_blocks)
    _check_globs(layers, include, exclude, reasons)
    kept, left_out = [], []
    for layer in layers:
        reason = (
            reasons.get(layer.name, "")
            if not _matches_any(layer.name, include)
            else _no_weight(layer)
        )
        if _matches_any(layer.name, exclude):
            reason = "excluded"
        if reason:
            left_out.append(LeftOut(layer.name, reason))
        else:
            kept.append(layer)
    if not kept:
        raise AllocationError(_nothing_left(left_out))
    return Coverage(tuple(kept), tuple(left_out))


def _outside(layers: Sequence[LayerRecord], inside_blocks: bool) -> dict[str, str]:
    """Give the reason of every layer that stays out unless included."""
    beside = beside_language_model([layer.name for layer in layers]) if inside_blocks else {}
    reasons = {
        layer.name: _reason(layer) or (_not_compressed(layer, beside) if inside_blocks else "")
        for layer in layers
    }
    return {name: reason for name, reason in reasons.items() if reason}


def _reason(layer: LayerRecord) -> str:
    """Say why a layer stays out of every allocation; empty where it does not."""
    return (
        _no_weight(layer)
        or OUTSIDE_KINDS.get(layer.kind)
        or ("a norm" if _NORM.search(layer.name) else "")
    )


def _no_weight(layer: LayerRecord) -> str:
    """Say why a row is no weight matrix, which no glob changes; empty for weights."""
    return (layer.reason or "no weight matrix") if layer.kind == NOT_A_WEIGHT else ""


def _not_compressed(layer: LayerRecord, beside: Mapping[str, str]) -> str:
    """Say why a layer is neither pruned nor quantised; empty where it is."""
    if unit_of(layer.name) is None:
        return "in no block"
    if layer.name in beside:
        return beside[layer.name]
    per_output = layer.cols * layer.n_matrices
    if (layer.kind == "conv" and layer.cols == 1) or (
        per_output <= _SHORT and _SHORT_CONVOLUTION.search(layer.name)
    ):
        return DEPTHWISE
    return SPECTRAL if layer.kind == "spectral" else ""


def _matches_any(name: str, globs: Iterable[str]) -> bool:
    return any(matches(name, glob) for glob in globs)


def _check_globs(
    layers: Sequence[LayerRecord],
    include: Sequence[str],
    exclude: Sequence[str],
    reasons: Mapping[str, str],
) -> None:
    for word, globs in (("include", include), ("exclude", exclude)):
        if isinstance(globs, str):
            raise AllocationError(
                f"{word} must be a list of globs, not the text {globs!r}: write [{globs!r}]"
            )
    for glob in (*include, *exclude):
        if not _matches_any_layer(layers, glob):
            word = "include" if glob in include else "exclude"
            examples = ", ".join(layer.name for layer in layers[:: max(1, len(layers) // 2)][:3])
            raise AllocationError(
                f"{word} {glob!r} matches none of the {len(layers)} layers; names look like {examples}"
            )
    for glob in include:
        found = [layer for layer in layers if matches(layer.name, glob)]
        if all(layer.kind == NOT_A_WEIGHT for layer in found):
            raise AllocationError(
                f"include {glob!r} matches no weight matrix: {found[0].name}: {_no_weight(found[0])}"
            )
        if len(found) < len(layers) and not any(layer.name in reasons for layer in found):
            raise AllocationError(
                f"include {glob!r} matches only layers that take part anyway: include adds layers that stay out "
                "by themselves, exclude leaves layers out"
            )


def _matches_any_layer(layers: Sequence[LayerRecord], glob: str) -> bool:
    return any(matches(layer.name, glob) for layer in layers)


def _nothing_left(left_out: Sequence[LeftOut]) -> str:
    """Say why not one layer takes part."""
    if not left_out:
        return "the analysis has no layers, so there is nothing to allocate"
    shown = ", ".join(f"{layer.name} ({layer.reason})" for layer in left_out[:3])
    return f"none of the {len(left_out)} layers takes part: {shown}...; name those that should with include"
