"""Fused gate and up projections of gated MLPs. The gate is the half that passes the activation.

The gate lies above the up projection almost everywhere; the exceptions are listed. A layer with
twice as many rows as the down projection has columns is a fused one, even under names of ordinary
MLPs (``fc1``, ``c_fc``). The order is not known there, so such a layer stays whole, in its own
kind, with a note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from spectail.models.layout.configuration import family_of
from spectail.models.layout.cut import Cut, alternating, cut_rows, halves
from spectail.models.layout.part import Part
from spectail.models.layout.view import View

_GATE_UP, _UP_GATE = ("gate", "up"), ("up", "gate")
_DOWN: Mapping[str, tuple[str, ...]] = {
    "gate_up_proj": ("down_proj",),
    "up_gate_proj": ("down_proj",),
    "up_proj": ("down_proj",),
    "w12": ("w3",),
    "weights_in": ("weights_out",),
    "Wi": ("Wo",),
    "wi": ("wo",),
    "input_linear": ("output_linear",),
    "ffn_up": ("ffn_down",),
    "dense_h_to_4h": ("dense_4h_to_h",),
    "linear_fc1": ("linear_fc2",),
    "fc1": ("fc2",),
    "fc1.proj": ("fc2",),
    "c_fc": ("c_proj",),
    "linear_1": ("linear_2",),
    "net.0.proj": ("net.2",),
}
"""Layers that hold a gate in some models, with the names of the down projection beside them."""
_NAMED: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("gate_up_proj", "w12", "weights_in"), _GATE_UP),
    "up_gate_proj": _UP_GATE,
}
"""The order under names that always hold both projections."""
_WIDE: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("Wi", "input_linear", "ffn_up"), _GATE_UP),
    "net.0.proj": _UP_GATE,  # diffusers' GEGLU and SwiGLU
}
"""The order under names that hold both projections only if the number of rows says so."""
_FAMILIES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("phi4_multimodal_audio", "gate_up_proj"): _UP_GATE,
    ("chatglm", "dense_h_to_4h"): _GATE_UP,
    **{(family, "fc1"): _UP_GATE for family in ("moonshine", "moonshine_streaming")},
    **{(family, "fc1"): _GATE_UP for family in ("moshi", "moshi_depth", "kyutai_speech_to_text")},
    **{(family, "fc1.proj"): _UP_GATE for family in ("clvp_encoder", "clvp")},
    **{(family, "linear_1"): _UP_GATE for family in ("aya_vision", "cohere2_vision")},
}
"""The order in families that deviate from the rule of the name."""
_ONLY_FAMILIES = frozenset({"linear_1", "up_proj"})
"""Names that hold both projections in the listed families only."""
_NAME = re.compile(
    rf"(?:^|\.)({'|'.join(re.escape(name) for name in sorted(_DOWN, key=len, reverse=True))})$"
)
"""A layer with one of these names, the longest first."""
_ALTERNATING = frozenset({("phi3small", "up_proj"), ("gpt_oss", "gate_up_projs")})
"""Families and names in which rows of gate and up alternate."""
_LIST = "gate_up_projs"
"""Experts that a quantiser has split into a list of linear layers."""
_EXPERT_LIST = re.compile(r"(?:^|\.)gate_up_projs\.\d+$")
"""One layer of such a list."""


def fused_gate_up(view: View) -> tuple[Part, ...] | None:
    """Cut gate and up out of one matrix (out, in), or out of each matrix of a stack.

    A fused matrix whose order or size is unclear stays whole, with a note that says why.
    """
    name = _name_of(view)
    if name is None or len(view.shape) > 3 or view.stored.layout == "conv":
        return None
    rows, family = view.shape[-2], family_of(view.config)
    down = _down_columns(view, name)
    # From specific to general: the family, a name that always means both, a telling size.
    order = _FAMILIES.get((family, name)) or _NAMED.get(name) or _WIDE.get(name)
    if len(view.shape) == 3:
        return _stack(view, halves(rows, *order)) if order and down and rows == 2 * down else None
    # A name that only sometimes means both is an ordinary layer here, and another rule takes it.
    if down is not None and rows != 2 * down:
        note = (
            f"gate and up are fused, and {rows} rows are not twice the {down} columns of the "
            "down projection"
        )
        return (
            (view.matrix(kind="gate_up", note=f"{note}: kept whole"),) if name in _NAMED else None
        )
    # Without a down projection to compare with, only a telling name is enough.
    if rows % 2 or (down is None and name not in _NAMED and name != _LIST):
        return None
    if (family, name) in _ALTERNATING:
        return cut_rows(view, alternating(rows, "gate", "up"))
    if order is None and name not in _ONLY_FAMILIES:
        note = (
            f"{rows} rows, twice what the next layer takes: two weights in an order that is not "
            "known, kept whole"
        )
        return (view.matrix(note=note),)
    return cut_rows(view, halves(rows, *order)) if order else None


def _stack(view: View, cut: Cut) -> tuple[Part, ...]:
    """Cut each matrix of a stack (Moshi's layers have a weight for each codebook)."""
    return tuple(
        part
        for i in range(view.shape[0])
        for part in cut_rows(view, cut, index=(i,), suffix=f"[{i}]")
    )


def _name_of(view: View) -> str | None:
    """Return which of the names above a layer has, or None."""
    if _EXPERT_LIST.search(view.layer):
        return _LIST
    match = _NAME.search(view.layer)
    return match[1] if match else None


def _down_columns(view: View, name: str) -> int | None:
    """Return the number of columns of the down projection beside a layer, or None without one."""
    stem = view.layer.removesuffix(name)
    for other in _DOWN.get(name, ()):
        for full in (f"{stem}{other}.weight", f"{stem}{other}"):
            shape = view.shapes.get(full)
            if shape is not None and len(shape) == len(view.shape):
                return shape[-1]
    return None
