"""Attention projections stored in three dimensions, with one matrix for each head.

All heads together are one layer.

- XLNet's q, k, v and r and Funnel's r_kernel are (width, heads, head size), with the inputs of a
  head first. XLNet's o has the same shape, but maps the head size to the width.
- llama.cpp splits DeepSeek's kv_b_proj into attn_k_b and attn_v_b, (heads, out, in), because its
  form of latent attention uses them separately.
- TransformerLens stores W_Q, W_K and W_V as (heads, width, head size) and W_O as (heads, head size,
  width), both (in, out).

The last dimension is never a convolution kernel here, whatever its length.
"""

from __future__ import annotations

import re
from functools import partial

from spectail.models.layout.arrange import axes
from spectail.models.layout.part import Part
from spectail.models.layout.view import View

_RULES: tuple[tuple[re.Pattern[str], tuple[int, int, int]], ...] = (
    (re.compile(r"(?:^|\.)rel_attn\.(?P<kind>[qkvr])$"), (1, 2, 0)),
    (re.compile(r"(?:^|\.)attention\.r_kernel$"), (1, 2, 0)),
    (re.compile(r"(?:^|\.)rel_attn\.(?P<kind>o)$"), (1, 0, 2)),
    (re.compile(r"(?:^|\.)attn_(?P<kind>[kv])_b$"), (0, 1, 2)),
    (re.compile(r"(?:^|\.)W_(?P<kind>[QKVO])$"), (0, 2, 1)),
)
"""Patterns for names, each with the stored dimensions that are the heads, the rows and the
columns."""


def per_head(view: View) -> tuple[Part, ...] | None:
    """Describe a projection with one matrix for each head as one layer."""
    if len(view.shape) != 3:
        return None
    for pattern, order in _RULES:
        if match := pattern.search(view.layer):
            # TransformerLens writes the kind in capitals; r is XLNet's projection of positions.
            kind = (match.groupdict().get("kind") or "").lower()
            heads, rows, cols = (view.shape[i] for i in order)
            arrange = partial(axes, order=order)
            name = "linear" if kind in {"", "r"} else kind
            return (Part(view.layer, name, heads, rows, cols, view.lead, arrange),)
    return None
