"""Which layers take part in an allocation, and why the others do not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spectail.errors import AllocationError
from spectail.models.naming.blocks import unit_of
from spectail.models.naming.select import matches
from spectail.records import LayerRecord

OUTSIDE_KINDS = {"embedding": "an embedding", "head": "the output head", "router": "a router", "lora": "a LoRA delta"}
"""Kinds that stay out unless included, and what the reason calls them."""

_NORM = re.compile(r"(?:^|\.)(?:\w*norm\d*|ln\w*)$", re.IGNORECASE)


@dataclass(frozen=True)
class LeftOut:
    """A layer that gets no value, and why."""

    name: str
    reason: str


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

    Embeddings, the head, norms, routers and LoRA deltas stay out, with ``inside_blocks`` also what lies in no repeated
    block. An ``include`` glob adds layers that would stay out, an ``exclude`` glob leaves layers out.

    Raises:
        AllocationError: a glob that changes nothing, or no layer that takes part.

    """
    _check_globs(layers, include, exclude, inside_blocks)
    kept, left_out = [], []
    for layer in layers:
        reason = _outside(layer, inside_blocks) if not _matches_any(layer.name, include) else ""
        if _matches_any(layer.name, exclude):
            reason = "excluded"
        if reason:
            left_out.append(LeftOut(layer.name, reason))
        else:
            kept.append(layer)
    if not kept:
        raise AllocationError(_nothing_left(left_out))
    return Coverage(tuple(kept), tuple(left_out))


def _outside(layer: LayerRecord, inside_blocks: bool) -> str:
    """Why a layer stays out unless included; empty where it takes part."""
    if layer.kind in OUTSIDE_KINDS:
        return OUTSIDE_KINDS[layer.kind]
    if _NORM.search(layer.name):
        return "a norm"
    return "in no block" if inside_blocks and unit_of(layer.name) is None else ""


def _matches_any(name: str, globs: Iterable[str]) -> bool:
    return any(matches(name, glob) for glob in globs)


def _check_globs(
    layers: Sequence[LayerRecord], include: Sequence[str], exclude: Sequence[str], inside_blocks: bool
) -> None:
    for word, globs in (("include", include), ("exclude", exclude)):
        if isinstance(globs, str):
            raise AllocationError(f"{word} must be a list of globs, not the text {globs!r}: write [{globs!r}]")
    for glob in (*include, *exclude):
        if not _matches_any_layer(layers, glob):
            word = "include" if glob in include else "exclude"
            examples = ", ".join(layer.name for layer in layers[:: max(1, len(layers) // 2)][:3])
            raise AllocationError(
                f"{word} {glob!r} matches none of the {len(layers)} layers; names look like {examples}"
            )
    for glob in include:
        found = [layer for layer in layers if matches(layer.name, glob)]
        if len(found) < len(layers) and not any(_outside(layer, inside_blocks) for layer in found):
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
