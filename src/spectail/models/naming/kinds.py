"""The kind of a layer (``q``, ``up``, ``head``...), read from the end of its name. No torch.

A new spelling of a known kind is one alternative in ``_KINDS``.
"""

from __future__ import annotations

import re

from spectail.models.naming.blocks import block_of

_ATTENTION = re.compile(
    r"(?:attn|attention|self_att|crossattention|SelfAttention|EncDecAttention)", re.IGNORECASE
)
"""A name that lies in an attention module."""

_OTHER_MIXER = re.compile(r"(?:^|\.)(?:mamba\w*|ssm|mixer|\w*conv)\.out_proj$")
"""The last projection of a state space layer (Mamba) or a convolution (LFM2): not of attention."""

_KINDS: tuple[tuple[str, str], ...] = (
    (
        "router",
        r"(router(\.\w+)?|(mlp|\w*moe|feed_forward|ffn|mixer)\.gate|shared_expert_gate"
        r"|ffn_gate_inp)",
    ),
    (
        "q",
        r"(q_proj(_weight)?|query|q|wq|to_q|q_lin|q_attn|query_proj|attn_q|q_a_proj|q_b_proj"
        r"|linear_q|q_linear|attn_q_[ab])",
    ),
    ("k", r"(k_proj(_weight)?|key|k|wk|to_k|k_lin|key_proj|attn_k|linear_k|attn_k_b)"),
    ("v", r"(v_proj(_weight)?|value|v|wv|to_v|v_lin|value_proj|attn_v|linear_v|attn_v_b)"),
    (
        "qkv",
        r"(qkv|qkv_proj|query_key_value|[wW]qkv|W_pack|to_qkv|in_proj_weight|attn_qkv|c_attn"
        r"|qkv_linear|linear_qkv)",
    ),
    # Multi-head latent attention (DeepSeek): key and value before and after the latent vector.
    (
        "kv",
        r"(kv_a_proj_with_mqa|kv_b_proj|kv_proj|to_kv|kv|kv_linear|key_value|linear_kv"
        r"|attn_kv_a_mqa|attn_kv_b)",
    ),
    ("gate_up", r"(gate_up_proj|up_gate_proj|w12|weights_in|ffn_gate_up_exps)"),
    (
        "gate",
        r"(gate_proj|(experts\.\d+|feed_forward|mlp|ffn|cond_ffn)\.w1|wi_0|ffn_gate|ffn_gate_exps)",
    ),
    ("up", r"(up_proj|(experts\.\d+|feed_forward|mlp|ffn|cond_ffn)\.w3|wi_1|ffn_up|ffn_up_exps)"),
    (
        "down",
        r"(down_proj|(experts\.\d+|feed_forward|mlp|ffn|cond_ffn)\.w2|DenseReluDense\.wo|ffn_down"
        r"|ffn_down_exps|output_linear)",
    ),
    (
        "fc1",
        r"(fc1|c_fc|lin1|linear1|dense_h_to_4h|wi|Wi|intermediate\.dense|intermediate_dense"
        r"|pwconv1|fc_in|ff\.layer_1)",
    ),
    (
        "fc2",
        r"(fc2|lin2|linear2|dense_4h_to_h|\d+\.output\.dense|fc_out|output_dense|pwconv2"
        r"|ff\.layer_2|mlp\.(c_proj|Wo))",
    ),
    (
        "o",
        r"(o_proj|out_proj|wo|to_out(\.0)?|out_lin|attn_output|o|out|attention\.output\.dense"
        r"|attention\.dense|self_attention\.dense)",
    ),
    ("o", r"\w*att\w*\.(c_proj|proj|dense|wo|Wo)"),
    (
        "head",
        r"(lm_head|embed_out|classifier|score|head|output|_?fc|classifier\.\d+|head\.\d+"
        r"|heads\.head|logits)",
    ),
    (
        "embedding",
        r"(\w*embed\w*|wte|wpe|relative_attention_bias|attn_rel_b|shared|\w*embeddings?\.\w+"
        r"|token_embd|position_embd|token_types|patch_embed\.proj)",
    ),
)
"""Each kind with a pattern for the end of a layer's name. The first pattern that fits decides, so
special names stand above general ones."""
_ENDINGS = tuple((kind, re.compile(rf"(?:^|\.)(?:{pattern})$")) for kind, pattern in _KINDS)
_PATCHES = re.compile(r"(?:^|\.)patch_embed\w*\.proj(?:ection)?$")
"""The projection of image patches, which takes the place of an embedding."""
_PROJECTION = re.compile(
    r"(?:^|[._])(?:proj(?:ect(?:ion|or)?)?(?:_layer)?|linear|dense|mapping|transformation|mlp|fc)\d*"
    r"(?:_(?:in|out|\d+))*$"
    r"|(?:^|\.)\w*(?:time|timestep)\w*_embed\w*\.\d+$"
)
"""Ends of names of linear layers in or behind an embedding: ``time_embedding.linear_1`` of
diffusion models, ``embedding_projection``, ``embedding_hidden_mapping_in``."""
_PREDICTION_HEAD = re.compile(r"(?:^|\.)shared_head\.head$")
"""The only output head that lies inside a block: the one of DeepSeek's multi-token prediction."""


def kind_of(name: str) -> str:
    """Return what a two-dimensional layer does, or ``linear`` if its name does not tell.

    >>> kind_of("model.layers.0.self_attn.q_proj"), kind_of("h.0.attn.c_proj")
    ('q', 'o')
    >>> kind_of("h.0.mlp.c_proj")
    'fc2'
    """
    in_block = block_of(name) is not None
    for kind, pattern in _ENDINGS:
        # Inside a block, names such as ``output`` and ``fc`` are ordinary layers.
        if kind == "head" and in_block and not _PREDICTION_HEAD.search(name):
            continue
        if kind == "embedding" and _PROJECTION.search(name) and not _PATCHES.search(name):
            continue
        if kind == "o" and _OTHER_MIXER.search(name):
            continue
        # A layer called ``o`` or ``dense`` can be anything outside an attention module.
        if pattern.search(name) and not (
            kind in {"o", "q", "k", "v"} and _is_short(name) and not _ATTENTION.search(name)
        ):
            return kind
    return "linear"


def _is_short(name: str) -> bool:
    """Whether a name has an ending that means a projection only inside an attention module."""
    return name.rsplit(".", 1)[-1] in {"q", "k", "v", "o", "out", "proj", "dense"}
