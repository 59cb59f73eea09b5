"""The parameter that holds a layer: parts of a fused weight are layers of their own. No torch."""

from __future__ import annotations

import re

from spectail.models.naming.kinds import kind_of

_NUMBERED = re.compile(r"\[\d+\](?:\.\w+)?$")
"""A matrix of a stack, such as an expert, and its part if it is fused too."""
_ATTENTION_PART = re.compile(r"\.(?:[abqkvz]|gate)$")
_QKV = re.compile(r"(?:^|\.)(?:\w*qkv\w*|in_proj|in_proj_ba)$", re.IGNORECASE)
"""Names that hold several projections of attention, beside those of the kinds ``qkv`` and ``kv``:
DeBERTa's, and those of linear attention."""
_GATED_PART = re.compile(r"\.(?:gate|up)$")
_RECURRENT = re.compile(r"((?:^|\.)weight_(?:ih|hh|hr)(?:_l\d+(?:_reverse)?)?)\.[ifgorzn]$")
_GATED = re.compile(
    r"(?:^|\.)(?:gate_up_proj|up_gate_proj|up_proj|w12|weights_in|[wW]i|input_linear|ffn_up"
    r"|dense_h_to_4h|linear_fc1|fc1|fc1\.proj|linear_1|net\.0\.proj|gate_up_projs\.\d+)$"
)
"""Layers that hold gate and up in some models (``models.layout.mlp``)."""


def stored_name(layer: str) -> str:
    """Return the name of the parameter that holds a layer, without ``.weight``.

    >>> stored_name("h.0.attn.c_attn.q"), stored_name("layers.0.mlp.experts.gate_up_proj[3].up")
    ('h.0.attn.c_attn', 'layers.0.mlp.experts.gate_up_proj')
    >>> stored_name("blocks.0.attn.q"), stored_name("rnn.weight_ih_l0.i")
    ('blocks.0.attn.q', 'rnn.weight_ih_l0')
    """
    name = _NUMBERED.sub("", layer)
    whole = name.rpartition(".")[0]
    # "q" and "up" are also names of whole layers: only the name before them tells.
    if _ATTENTION_PART.search(name) and (_QKV.search(whole) or kind_of(whole) in ("qkv", "kv")):
        return whole
    if _GATED_PART.search(name) and _GATED.search(whole):
        return whole
    match = _RECURRENT.search(name)
    return name[: match.end(1)] if match else name
