"""Units: what gets one value each, a layer or a block of layers, and the alpha behind it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import Field, dataclass, replace
from statistics import fmean
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from spectail.allocation.left_out import Code, LeftOut, Reason
from spectail.basics.texts import first_names
from spectail.errors import AllocationError
from spectail.models.naming.blocks import unit_of
from spectail.results.records import Rounding

Array: TypeAlias = NDArray[np.float64]

LEVELS = ("block", "layer")
FALLBACKS = ("error", "mean", "leave")
"""What to do with a layer that has no comparable alpha.

Refuse, take the mean alpha of its block (or else of all layers), or leave the layer out.
"""
SHOWN = 8
"""How many names an error lists before it counts the rest."""


class Measured(Protocol):
    """What units read of a measured layer; it is a frozen dataclass, for its alpha is replaced."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str:
        """Full name of the layer."""

    @property
    def kind(self) -> str:
        """What the layer does: ``q``, ``up``, ``conv``, ..."""

    @property
    def numel(self) -> int:
        """Number of weights."""

    @property
    def alpha(self) -> float:
        """Tail exponent; NaN where it was not measured."""

    @property
    def weight_var(self) -> float:
        """Variance of the weights; NaN where it was not measured."""

    @property
    def group_range(self) -> float:
        """Mean squared range of groups of weights over their mean square; NaN if unknown."""

    @property
    def rounding(self) -> tuple[Rounding, ...]:
        """Error of each format that the weights were quantised to; empty where not measured."""

    @property
    def status(self) -> str:
        """``ok``, ``skipped`` or ``failed``."""

    @property
    def reason(self) -> str:
        """Why the layer is skipped or failed, or what to keep in mind about its alpha."""

    @property
    def comparable(self) -> bool:
        """Whether alpha compares with that of other layers."""


L = TypeVar("L", bound=Measured)


@dataclass(frozen=True)
class Units:
    """Parallel arrays over units, in the order of the model."""

    names: tuple[str, ...]
    """Name of the block (``model.layers.3``), or of the layer where each layer is a unit."""
    members: tuple[tuple[Measured, ...], ...]
    alpha: Array
    """Plain mean over the unit's layers, as in AlphaPruning."""
    numel: Array
    variance: Array
    """Mean variance of the weights, weighted by numel; NaN if it is unknown for a layer."""
    blocks: tuple[str, ...] = ()
    """Names of all blocks of the model, with those that no layer takes part of."""


def make_units(layers: Sequence[Measured], level: str, *, model: Iterable[str] = ()) -> Units:
    """Group layers by block, or take each layer by itself if ``level`` is ``layer``.

    A layer that lies in no block is a unit of its own. ``model`` holds the names of all layers of
    the model, which say what blocks it has.
    """
    groups: dict[str, list[Measured]] = {}
    for layer in layers:
        # The full name of the block: encoder and decoder both have a block 0.
        unit = unit_of(layer.name) if level == "block" else None
        groups.setdefault(unit or layer.name, []).append(layer)
    numel = [sum(layer.numel for layer in group) for group in groups.values()]
    # One NaN makes the unit's variance NaN: a target that needs it refuses the unit by name.
    weighted = [sum(layer.numel * layer.weight_var for layer in group) for group in groups.values()]
    return Units(
        names=tuple(groups),
        members=tuple(map(tuple, groups.values())),
        alpha=np.array([fmean(layer.alpha for layer in group) for group in groups.values()]),
        numel=np.array(numel, dtype=np.float64),
        variance=np.array(weighted) / np.array(numel),
        blocks=tuple(dict.fromkeys(filter(None, map(unit_of, model)))),
    )


def standardized_by_kind(layers: Sequence[L]) -> tuple[L, ...]:
    """Return the layers with alphas that are compared within each kind: q with q, down with down.

    The alphas of every kind are shifted and scaled to the mean and the spread of all alphas, so
    that a kind that differs from the others, or varies more, does not decide alone. A kind without
    spread gets the mean.
    """
    alpha = np.array([layer.alpha for layer in layers])
    kinds = np.array([layer.kind for layer in layers])
    scores = np.zeros_like(alpha)
    for kind in set(kinds):
        of_kind = alpha[kinds == kind]
        # The standard deviation of equal numbers may be rounding noise: the range is exactly 0.
        spread = of_kind.std() if np.ptp(of_kind) > 0 else 0.0
        scores[kinds == kind] = (of_kind - of_kind.mean()) / spread if spread > 0 else 0.0
    found = alpha.mean() + alpha.std() * scores
    return tuple(
        replace(layer, alpha=float(value)) for layer, value in zip(layers, found, strict=True)
    )


def with_alphas(
    layers: Sequence[L], missing: str
) -> tuple[tuple[L, ...], tuple[LeftOut, ...], tuple[str, ...]]:
    """Return layers with an alpha, layers dropped for lacking one, and notes on imputed values.

    Raises:
        AllocationError: alphas are missing and ``missing`` is "error", or not one layer has an
            alpha.

    """
    lacking = {layer.name: why for layer in layers if (why := why_no_alpha(layer))}
    if not lacking:
        return tuple(layers), (), ()
    shown = first_names([f"{name} ({reason})" for name, reason in lacking.items()], SHOWN)
    if missing == "error":
        raise AllocationError(
            f"{len(lacking)} of {len(layers)} layers have no comparable alpha: {shown}; "
            "exclude them, or set missing "
            "to mean (the mean alpha of their block, else of all) or leave (no value for them)"
        )
    known = [layer for layer in layers if layer.name not in lacking]
    if not known:
        raise AllocationError(
            f"not one of the {len(layers)} layers has a comparable alpha: {shown}"
        )
    if missing == "leave":
        reasons = {name: Reason(Code.NO_ALPHA, f"no alpha: {why}") for name, why in lacking.items()}
        return tuple(known), tuple(LeftOut(name, why) for name, why in reasons.items()), ()
    remark = f"{len(lacking)} layers take the mean alpha of their block, else of all: {shown}"
    return _filled(layers, known), (), (remark,)


def why_no_alpha(layer: Measured) -> str:
    """Say why a layer has no alpha to go by; empty if it has one."""
    # The status comes first: the alpha of a failed layer is NaN, which says less.
    if layer.status != "ok":
        return f"{layer.status}: {layer.reason}"
    if not (math.isfinite(layer.alpha) and layer.alpha > 0):
        return f"alpha is {layer.alpha:g}"
    return "" if layer.comparable else layer.reason or "not comparable"


def check_level(level: str) -> None:
    """Refuse a level other than ``block`` and ``layer``."""
    if level not in LEVELS:
        raise AllocationError(f"level must be block or layer, not {level!r}")


def check_missing(missing: str) -> None:
    """Refuse what is none of ``FALLBACKS``."""
    if missing not in FALLBACKS:
        raise AllocationError(f"missing must be one of {', '.join(FALLBACKS)}, not {missing!r}")


def _filled(layers: Sequence[L], known: Sequence[L]) -> tuple[L, ...]:
    """Give layers that are not in ``known`` the mean alpha of their block, or else of all layers.

    Means run over known layers only. A missing variance or range is filled in the same way, and
    missing errors of formats are those of the first known layer of the block.
    """
    beside: dict[str | None, list[L]] = {}
    for layer in known:
        beside.setdefault(unit_of(layer.name), []).append(layer)
    beside[None] = list(known)
    names = {layer.name for layer in known}
    found = []
    for layer in layers:
        if layer.name not in names:
            # A block without a known alpha, like a layer in no block, takes the mean of all.
            others = beside.get(unit_of(layer.name), beside[None])
            own = layer.weight_var
            variance = own if math.isfinite(own) else fmean(other.weight_var for other in others)
            # Errors of formats are relative, so that those of one neighbour serve as well.
            layer = replace(
                layer,
                alpha=fmean(other.alpha for other in others),
                weight_var=variance,
                group_range=layer.group_range
                if math.isfinite(layer.group_range)
                else fmean(other.group_range for other in others),
                rounding=layer.rounding or others[0].rounding,
            )
        found.append(layer)
    return tuple(found)
