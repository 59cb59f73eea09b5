"""Which layers take part in an allocation, and why the others do not."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from spectail.allocation.language_model_blocks import beside_language_model
from spectail.allocation.left_out import Code, LeftOut, Reason
from spectail.errors import AllocationError
from spectail.models.naming.blocks import unit_of
from spectail.models.naming.select import ALL_KINDS, KindFilter, check_globs, matches
from spectail.models.source import NOT_A_WEIGHT

OUTSIDE_KINDS = {
    "embedding": Reason(Code.EMBEDDING, "an embedding"),
    "head": Reason(Code.HEAD, "the output head"),
    "router": Reason(Code.ROUTER, "a router"),
    "lora": Reason(Code.LORA, "a LoRA delta"),
}
"""Kinds of layer that stay out unless they are included by name."""

NORM = Reason(Code.NORM, "a norm")
OUTSIDE_BLOCKS = Reason(Code.OUTSIDE_BLOCKS, "in no block")
EXCLUDED = Reason(Code.EXCLUDED, "excluded")
DEPTHWISE = Reason(
    Code.DEPTHWISE,
    "a depth-wise convolution or one of a single channel: each output has only its kernel's "
    "few weights",
)
"""The short convolutions in Mamba, LFM2 and Qwen3-Next, and those in MobileNet and ConvNeXt."""
SPECTRAL = Reason(
    Code.SPECTRAL,
    "complex weights of a Fourier layer: no sparsity or bit width is defined for them",
)

NO_BLOCKS = "The model has no blocks: every layer is a unit of its own."
"""The note on a compression of a model without repeated blocks."""

_SHORT_CONVOLUTION = re.compile(
    r"(?:^|\.)(?:\w*conv_?1d|(?:short)?conv\.conv|\w*dw_?conv|\w*depth_?wise\w*)$", re.IGNORECASE
)
_SHORT = 16
"""A convolution with such a name is depth-wise if each output has at most this many weights.

Checkpoints do not store the number of groups, so the name and the size have to tell.
"""

_NORM = re.compile(r"(?:^|\.)(?:\w*norm\d*|ln\w*)$", re.IGNORECASE)


class Coverable(Protocol):
    """What coverage reads of a layer: rows of a table, layers of a model and units all have it.

    Two more attributes are read where they exist: ``n_matrices`` (kernel positions of a
    convolution, else 1), and ``no_weight`` (why a layer of kind ``parameter`` is no matrix).
    """

    @property
    def name(self) -> str:
        """Full name of the layer."""

    @property
    def kind(self) -> str:
        """What the layer does: ``q``, ``up``, ``conv``, ``embedding``, ..."""

    @property
    def rows(self) -> int:
        """Output size of each matrix."""

    @property
    def cols(self) -> int:
        """Input size of each matrix."""


@dataclass(frozen=True)
class Candidate:
    """The plainest thing that can be covered, for callers that hold neither layers nor records."""

    name: str
    kind: str
    rows: int
    cols: int
    n_matrices: int = 1
    no_weight: str | None = None


L = TypeVar("L", bound=Coverable)


@dataclass(frozen=True)
class Coverage(Generic[L]):
    """The layers that take part, in the model's order, the others, and notes for the user."""

    layers: tuple[L, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()


def cover(
    layers: Sequence[L],
    *,
    inside_blocks: bool,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    always: Collection[str] = (),
    of: KindFilter = ALL_KINDS,
) -> Coverage[L]:
    """Choose the layers that take part.

    Embeddings, the head, norms, routers and LoRA deltas stay out. With ``inside_blocks``, for
    compression, so do layers in no repeated block, the towers beside the language model of a
    multi-modal model, depth-wise convolutions and complex spectral weights. Where a model has no
    blocks at all, its layers take their place. ``include`` globs add layers that would stay out,
    ``exclude`` globs leave layers out. ``of`` keeps layers of some kinds and types only; a kind
    that is named takes part even if it stays out by itself. ``always`` holds full names of layers
    that take part whatever their kind; unlike a glob, a name that adds nothing is no error.
    Parameters that are no weight matrices stay out in any case.

    Raises:
        AllocationError: a glob or a kind that matches nothing, or no layer that takes part.

    """
    # Globs are checked against the reasons, so that an include which adds nothing is noticed.
    has_blocks = any(unit_of(layer.name) is not None for layer in layers)
    reasons = _outside(layers, inside_blocks, has_blocks, of)
    _check_globs(layers, include, exclude, reasons)
    of.check((layer.kind for layer in layers), AllocationError)
    kept, left_out = [], []
    for layer in layers:
        wanted = layer.name in always or _matches_any(layer.name, include)
        reason = _no_weight(layer) if wanted else reasons.get(layer.name)
        if not (reason or of.wants(layer.kind)):
            reason = Reason(Code.OTHER_KIND, f"not of {of}")
        # A layer that both globs name stays out: exclude is the narrower wish.
        if _matches_any(layer.name, exclude):
            reason = EXCLUDED
        if reason:
            left_out.append(LeftOut(layer.name, reason))
        else:
            kept.append(layer)
    if not kept:
        raise AllocationError(_nothing_left(left_out))
    notes = (NO_BLOCKS,) if inside_blocks and not has_blocks else ()
    return Coverage(tuple(kept), tuple(left_out), notes)


def _outside(
    layers: Sequence[Coverable], inside_blocks: bool, has_blocks: bool, of: KindFilter
) -> dict[str, Reason]:
    """Give the reason of every layer that stays out unless it is included."""
    beside = beside_language_model([layer.name for layer in layers]) if inside_blocks else {}
    reasons: dict[str, Reason | None] = {}
    for layer in layers:
        # Embeddings and heads lie in no block: naming their kind is a wish to include them.
        named = layer.kind in OUTSIDE_KINDS and of.names(layer.kind)
        reason = _by_role(layer, named)
        if inside_blocks and not (reason or named):
            reason = _not_compressed(layer, beside, has_blocks)
        reasons[layer.name] = reason
    return {name: reason for name, reason in reasons.items() if reason}


def _by_role(layer: Coverable, named: bool) -> Reason | None:
    """Say why a layer stays out of every allocation, unless its kind is named; None if not."""
    # Norms with a matrix-shaped scale (over heads, say) are stored like any other weight.
    by_name = NORM if _NORM.search(layer.name) else None
    by_kind = None if named else OUTSIDE_KINDS.get(layer.kind)
    return _no_weight(layer) or by_kind or by_name


def _no_weight(layer: Coverable) -> Reason | None:
    """Say why a row is no weight matrix, which no glob changes; None for weights."""
    if layer.kind != NOT_A_WEIGHT:
        return None
    return Reason(Code.NO_WEIGHT, getattr(layer, "no_weight", None) or "no weight matrix")


def _not_compressed(layer: Coverable, beside: Mapping[str, str], has_blocks: bool) -> Reason | None:
    """Say why a layer is neither pruned nor quantised; None if it is."""
    if has_blocks and unit_of(layer.name) is None:
        return OUTSIDE_BLOCKS
    if layer.name in beside:
        return Reason(Code.OTHER_TOWER, beside[layer.name])
    # Each output of a convolution has one row of weights per kernel position.
    per_output = layer.cols * getattr(layer, "n_matrices", 1)
    # GGUF stores depth-wise convolutions as plain matrices, so that the name counts as well.
    if (layer.kind == "conv" and layer.cols == 1) or (
        per_output <= _SHORT and _SHORT_CONVOLUTION.search(layer.name)
    ):
        return DEPTHWISE
    return SPECTRAL if layer.kind == "spectral" else None


def _matches_any(name: str, globs: Iterable[str]) -> bool:
    """Whether a name matches one of the globs."""
    return any(matches(name, glob) for glob in globs)


def _check_globs(
    layers: Sequence[Coverable],
    include: Sequence[str],
    exclude: Sequence[str],
    reasons: Mapping[str, Reason],
) -> None:
    """Refuse globs that match no layer, and ``include`` globs that add none."""
    names = [layer.name for layer in layers]
    for word, globs in (("include", include), ("exclude", exclude)):
        # A text is a sequence too: its single letters would be taken for globs.
        if isinstance(globs, str):
            raise AllocationError(
                f"{word} must be a list of globs, not the text {globs!r}: write [{globs!r}]"
            )
        check_globs(word, globs, names, AllocationError)
    for glob in include:
        _check_adds(glob, layers, reasons)


def _check_adds(glob: str, layers: Sequence[Coverable], reasons: Mapping[str, Reason]) -> None:
    """Refuse an ``include`` glob that adds no layer."""
    found = [layer for layer in layers if matches(layer.name, glob)]
    if all(layer.kind == NOT_A_WEIGHT for layer in found):
        raise AllocationError(
            f"include {glob!r} matches no weight matrix: {found[0].name}: {_no_weight(found[0])}"
        )
    # "*" is understood as "all layers, whatever they are", even where that adds none.
    if len(found) < len(layers) and not any(layer.name in reasons for layer in found):
        raise AllocationError(
            f"include {glob!r} matches only layers that take part anyway: "
            "include adds layers that stay out by themselves, exclude leaves layers out"
        )


def _nothing_left(left_out: Sequence[LeftOut]) -> str:
    """Say why not one layer takes part."""
    if not left_out:
        return "the analysis has no layers, so there is nothing to allocate"
    shown = ", ".join(f"{layer.name} ({layer.reason})" for layer in left_out[:3])
    return (
        f"none of the {len(left_out)} layers takes part: {shown}...; "
        "name those that should with include"
    )
