"""transformers' ``Conv1D``: a linear layer that is stored as (in, out), and transposed here.

In a checkpoint it is recognised by GPT-2's names together with shapes that fit only the transposed
reading: ``c_attn`` and ``c_fc`` widen, the ``c_proj`` of the MLP narrows. Linear layers of the same
names (nanoGPT, StarCoder) are not transposed.
"""

from __future__ import annotations

import re

from spectail.models.layout.arrange import transposed
from spectail.models.layout.attention import conv1d_attention
from spectail.models.layout.configuration import family_of
from spectail.models.layout.part import Part
from spectail.models.layout.view import View

_GPT2 = re.compile(
    r"(?:^|\.)(h\.\d+\.(?:attn|crossattention|mlp)\.)(c_attn|c_proj|c_fc|c_fc2|q_attn)\.weight$"
)
"""Names of the layers that are ``Conv1D`` in GPT-2."""
_LINEAR = frozenset({"gpt_bigcode", "qwen", "codeshell"})
"""Families that use GPT-2's names for ordinary linear layers."""


def conv1d(view: View) -> tuple[Part, ...] | None:
    """Transpose a Conv1D, and cut the one that holds query, key and value."""
    if len(view.shape) != 2 or not (view.stored.layout == "conv1d" or _looks_like_conv1d(view)):
        return None
    inputs, outputs = view.shape
    return conv1d_attention(view) or (view.matrix(size=(outputs, inputs), arrange=transposed),)


def _looks_like_conv1d(view: View) -> bool:
    """Whether name, shape and neighbouring layers show that a matrix is stored as (in, out)."""
    match = _GPT2.search(view.name)
    if match is None or view.stored.layout is not None or family_of(view.config) in _LINEAR:
        return False
    wide = view.shape[1] - view.shape[0]
    if wide:
        # A plain linear layer of this name would be (out, in), with the long side exchanged.
        narrows = match[2] == "c_proj" and match[1].endswith("mlp.")
        return wide < 0 if narrows else wide > 0
    # A square layer tells nothing by itself; it is stored the same way as the c_attn beside it.
    fused = view.sibling("c_attn")
    return fused is not None and len(fused) == 2 and fused[1] > fused[0]
