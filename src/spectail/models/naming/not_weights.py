"""Decide by name and shape whether a stored tensor is a weight matrix. No torch.

A weight matrix multiplies activations: it belongs to a linear layer, a convolution, an embedding, a
recurrent layer or an expert. Checkpoints also hold other tensors of two and more dimensions, such
as class tokens, relative position tables, Mamba's ``A_log`` and layer scales. These must not be
measured, pruned or given bits. A file does not say which module owns a tensor, so the name has to
decide. The modules of torch call their matrix ``weight``. Parameters with other names belong
directly to a model's own modules. Few of them are matrices; ``_BARE`` lists those.

``tests/models/test_transformers_sweep.py`` compares this rule with the owning modules of every
model class of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_WEIGHT = re.compile(r"(?:^|\.)weight(?:\.\d+)?(?:\.tensor)?$")
"""The name that torch's modules give their matrix. In tensorly's layers the tensor lies one level
deeper."""

LONGEST_KERNEL = 32
"""Longest last dimension of a tensor (1, 1, n) that counts as the kernel of a one-channel
convolution."""

_NORM = re.compile(
    r"(?:^|\.)(?:\w*norm\d*|layernorm\w*|ln(?:_(?!proj)\w+|\d*)|bn\d*)\.weight$", re.IGNORECASE
)
"""The scale of a normalisation layer."""
_MIXING = re.compile(
    r"(?:^|\.)(?:time_mix_(?:lerp\w*|first|decay|[kr]_[ka]|[wavk]0|ln)"
    r"|channel_mix_lerp\w*)\.weight$"
)
"""RWKV's mixing factors, whose names also end in ``weight`` in llama.cpp's files."""
_POSITION = re.compile(
    r"rel_?pos|relative|position|pos_?(?:emb|enc)|(?:^|[._])(?:pos|ape|pe)(?:[._]|$)|rel_logits",
    re.IGNORECASE,
)
"""Names of position tables."""

_BARE = tuple(
    re.compile(rf"(?:^|\.)(?:{pattern})$")
    for pattern in (
        # Recurrent modules and torch's attention keep several matrices in one module.
        r"weight_(?:ih|hh|hr)(?:_l\d+)?(?:_reverse)?",
        # torch's in_proj_weight, Zamba's x_proj_weight, RecurrentGemma's input_gate_weight, Gemma
        # 3's mm_input_projection_weight, KAN's base_weight and spline_weight.
        r"(?:\w+_)?(?:proj|projection|gate|linear|dense|kernel|fc\d*|base|spline)_weight",
        # CLIP's visual.proj and text_projection, X-CLIP's prompts_visual_projection.
        r"(?:\w+_)?proj(?:ection)?",
        # Fourier layers (weights1, fourier_weight.0), Dbrx's experts (w1, v1), RWKV's low-rank
        # pairs (att.g1, time_maa_w1), Flax (kernel, embedding), home-made layers (W_q, w).
        r"(?:fourier_)?weights?_?\d*(?:\.\d+)?|W\w*|[wuv](?:_?\d)?|att\.[ag]\d|time_\w+_w\d",
        r"kernel|(?:new_)?embedding",
        # Funnel and XLNet keep (d_model, heads, d_head); GLM-5's indexer calls F.linear with its
        # gate.
        r"r_kernel|rel_attn\.[qkvor]|index_kpool_compress_gate",
    )
)
"""Names of parameters that are weight matrices although no module of torch owns them."""

_EXPERT = re.compile(r"(?:^|\.)\w*experts\.(?:\w+\.)*\w+$")
"""Any parameter inside a module of experts."""
_EXPERT_HELPER = re.compile(r"bias|scale|norm|gamma|alpha", re.IGNORECASE)
"""Parameters of experts that are no matrices."""

_REASONS = tuple(
    (re.compile(pattern, re.IGNORECASE), reason)
    for pattern, reason in (
        (r"position_bias_table", "a relative position table"),
        (r"bias(?:es)?(?:_\w)?$", "a bias"),
        (r"scale|gamma|lambda|gain|alpha|beta|temperature", "a scale"),
        (_POSITION.pattern, "a position table"),
        (r"A_log|ssm_a$|time_|decay|dt_bias", "a state-space or mixing parameter"),
        (
            r"token|cls|class_emb|mask_emb|probe|query|queries|latent|prompt",
            "learned tokens or queries",
        ),
        (r"embed|emb_|_emb|codebook|codevector", "a table"),
    )
)
"""Patterns for names that are no matrices, each with what such a tensor is."""
UNKNOWN = "a parameter whose name is not that of a matrix"
"""The reason if the name says nothing about the tensor."""


def no_matrix(
    name: str, shape: tuple[int, ...], *, is_complex: bool = False, among_weights: bool = True
) -> str | None:
    """Return why a tensor of two or more dimensions is no weight matrix, or None if it is one.

    Args:
        name: Full name of the parameter, including ``.weight`` where it has that.
        shape: Its stored shape.
        is_complex: Whether its entries are complex. A complex tensor of three or more dimensions is
            the weight of a Fourier layer.
        among_weights: Whether the source calls its matrices ``weight``: see
            :func:`are_weights_named`. In other sources, such as a plain dict of matrices, a name
            that says nothing counts as a matrix.

    >>> no_matrix("blocks.0.attn.qkv.weight", (2304, 768))
    >>> no_matrix("blocks.0.attn.relative_position_bias_table", (169, 24))
    'a relative position table'

    """
    if _WEIGHT.search(name):
        return _no_weight(name, shape)
    if is_complex and len(shape) > 2:
        return None
    # The parameter's own name goes before the names of the modules around it.
    reason = next((why for pattern, why in _REASONS if pattern.search(_last(name))), None)
    # A tensor such as (1, 1, n) holds a vector.
    if sum(size != 1 for size in shape) < 2:
        return reason or "a vector"
    if _is_named_matrix(name, shape) and not _POSITION.search(name):
        return None
    reason = reason or next((why for pattern, why in _REASONS if pattern.search(name)), None)
    return reason or (UNKNOWN if among_weights else None)


def are_weights_named(names: Iterable[str]) -> bool:
    """Whether a source calls its matrices ``weight``, as torch's modules do."""
    return any(_WEIGHT.search(name) for name in names)


def _no_weight(name: str, shape: tuple[int, ...]) -> str | None:
    """Return why a tensor called ``weight`` is no matrix (a norm's scale, a table), or None."""
    if _NORM.search(name):
        return "the scale of a norm"
    if len(shape) > 2 and all(size == 1 for size in shape[:-1]) and shape[-1] > LONGEST_KERNEL:
        return "a vector"
    if _MIXING.search(name):
        return "a mixing parameter"
    owner = name.rpartition(".weight")[0].rpartition(".")[2]
    return (
        "a position table"
        if len(shape) > 2 and _POSITION.search(owner) and "emb" in owner
        else None
    )


def _is_named_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a name without ``weight`` is one of the names that matrices have."""
    # Stacked experts are matrices under almost any name.
    if len(shape) == 3 and _EXPERT.search(name):
        return not _EXPERT_HELPER.search(_last(name))
    return any(pattern.search(name) for pattern in _BARE)


def _last(name: str) -> str:
    """Return the last component of a name, or the last two if it is numbered (``weights.0``)."""
    *_, before, last = ["", *name.split(".")]
    return f"{before}.{last}" if last.isdigit() else last
