"""Units: what gets one value each, a layer or a block of layers, and the alpha that it is given by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.allocation.coverage import LeftOut
from spectail.errors import AllocationError
from spectail.models.naming.blocks import unit_of
from spectail.results.records import LayerRecord

Array: TypeAlias = NDArray[np.float64]

LEVELS = ("block", "layer")
FALLBACKS = ("error", "mean", "leave")
"""For a layer without a comparable alpha: refuse, take the mean of its block (else of all), or
leave it out."""
SHOWN = 8
"""How many names an error lists before it counts the rest."""


@dataclass(frozen=True)
class Units:
    """Parallel arrays over units, in the order of the model."""

    names: tuple[str, ...]
    """Of the block (``model.layers.3``), or of the layer where that is the unit."""
    members: tuple[tuple[LayerRecord, ...], ...]
    alpha: Array
    """Plain mean over the unit's layers, as AlphaPruning takes it."""
    numel: Array
    variance: Array
    """Mean of the weights' variance over the unit, weighted by numel; NaN where a layer has
    none."""


def make_units(layers: Sequence[LayerRecord], level: str) -> Units:
    """Group measured layers by block (a layer in no block is a unit of its own), or take each by itself."""
    groups: dict[str, list[LayerRecord]] = {}
    for layer in layers:
        unit = unit_of(layer.name) if level == "block" else None
        groups.setdefault(unit or layer.name, []).append(layer)
    numel = [sum(layer.numel for layer in group) for group in groups.values()]
    weighted = [sum(layer.numel * layer.weight_var for layer in group) for group in groups.values()]
    return Units(
        names=tuple(groups),
        members=tuple(map(tuple, groups.values())),
        alpha=np.array([fmean(layer.alpha for layer in group) for group in groups.values()]),
        numel=np.array(numel, dtype=np.float64),
        variance=np.array(weighted) / np.array(numel),
    )


def standardized_by_kind(layers: Sequence[LayerRecord]) -> tuple[LayerRecord, ...]:
    """The layers with alphas that count within their kind: q with q, down with down.

    Every kind's alphas are moved and scaled to the mean and the spread of all, so that a kind that
    differs from the others, or varies more, does not decide alone. A kind without spread gets the
    mean.
    """
    alpha = np.array([layer.alpha for layer in layers])
    kinds = np.array([layer.kind for layer in layers])
    scores = np.zeros_like(alpha)
    for kind in set(kinds):
        of_kind = alpha[kinds == kind]
        spread = of_kind.std() if np.ptp(of_kind) > 0 else 0.0
        scores[kinds == kind] = (of_kind - of_kind.mean()) / spread if spread > 0 else 0.0
    found = alpha.mean() + alpha.std() * scores
    return tuple(
        replace(layer, alpha=float(value)) for layer, value in zip(layers, found, strict=True)
    )


def with_alphas(
    layers: Sequence[LayerRecord], missing: str
) -> tuple[tuple[LayerRecord, ...], tuple[LeftOut, ...], tuple[str, ...]]:
    """Layers that all have an alpha, those left out for want of one, and remarks on what was filled in.

    Raises:
        AllocationError: alphas are missing and ``missing`` is "error", or not one layer has an
            alpha.

    """
    if missing not in FALLBACKS:
        raise AllocationError(f"missing must be one of {', '.join(FALLBACKS)}, not {missing!r}")
    lacking = {layer.name: _lacks(layer) for layer in layers if _lacks(layer)}
    if not lacking:
        return tuple(layers), (), ()
    described = [f"{name} ({reason})" for name, reason in lacking.items()]
    shown = ", ".join(described[:SHOWN]) + (
        f" and {len(described) - SHOWN} more" if len(described) > SHOWN else ""
    )
    if missing == "error":
        raise AllocationError(
            f"{len(lacking)} of {len(layers)} layers have no comparable alpha: {shown}; exclude them, or set missing "
            "to mean (the mean alpha of their block, else of all) or leave (no value for them)"
        )
    known = [layer for layer in layers if layer.name not in lacking]
    if not known:
        raise AllocationError(
            f"not one of the {len(layers)} layers has a comparable alpha: {shown}"
        )
    if missing == "leave":
        return (
            tuple(known),
            tuple(LeftOut(name, f"no alpha: {reason}") for name, reason in lacking.items()),
            (),
        )
    remark = f"{len(lacking)} layers take the mean alpha of their block, else of all: {shown}"
    return _filled(layers, known), (), (remark,)


def check_level(level: str) -> None:
    """Refuse what is neither block nor layer."""
    if level not in LEVELS:
        raise AllocationError(f"level must be block or layer, not {level!r}")


def _lacks(layer: LayerRecord) -> str:
    """Why a layer has no alpha to go by; empty where it has one."""
    if layer.status != "ok":
        return f"{layer.status}: {layer.reason}"
    if not (math.isfinite(layer.alpha) and layer.alpha > 0):
        return f"alpha is {layer.alpha:g}"
    return "" if layer.comparable else layer.reason or "not comparable"


def _filled(layers: Sequence[LayerRecord], known: Sequence[LayerRecord]) -> tuple[LayerRecord, ...]:
    """The layers, those not in ``known`` with the mean alpha of their block's known ones, else of all.

    Their variance is filled in the same way where they have none.
    """
    beside: dict[str | None, list[LayerRecord]] = {}
    for layer in known:
        beside.setdefault(unit_of(layer.name), []).append(layer)
    beside[None] = list(known)
    names = {layer.name for layer in known}
    found = []
    for layer in layers:
        if layer.name not in names:
            others = beside.get(unit_of(layer.name), beside[None])
            own = layer.weight_var
            variance = own if math.isfinite(own) else fmean(other.weight_var for other in others)
            layer = replace(
                layer, alpha=fmean(other.alpha for other in others), weight_var=variance
            )
        found.append(layer)
    return tuple(found)
