"""Names of parameters and layers: wrappers taken off, and the known forms of one weight mapped onto one name.

A parameter has its full name (``model.layers.0.mlp.up_proj.weight``); the layer is called the same without
``.weight``. This file imports no torch, because results are compared without it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PEFT = re.compile(r"\.lora_(?:A|B|embedding_A|embedding_B)(?:\.|$)")
_SAVED_MODULE = re.compile(r"\.modules_to_save\.[^.]+(?=\.)")
_NUMBERS = re.compile(r"(\d+)")
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_LINEARS = {"input_linear.gate": "gate_proj", "input_linear.up": "up_proj", "output_linear": "down_proj"}


def clean_names(names: Sequence[str]) -> list[str]:
    """Take what training wrappers (DDP, FSDP, torch.compile, peft) put around the names of a model's parameters."""
    cleaned = [_WRAPPERS.sub("", name) for name in names]
    while cleaned and all(name.startswith("module.") for name in cleaned):
        cleaned = [name.removeprefix("module.") for name in cleaned]
    if any(_PEFT.search(name) for name in cleaned):
        cleaned = [_without_peft(name) for name in cleaned]
    return _unique(names, cleaned)


def _without_peft(name: str) -> str:
    """Give a peft model's parameter the name it has in the base model."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    return _SAVED_MODULE.sub("", name)


def _unique(names: Sequence[str], cleaned: Sequence[str]) -> list[str]:
    """Keep the stored name wherever cleaning would make two parameters share one."""
    counts = Counter(cleaned)
    return [name if counts[short] > 1 else short for name, short in zip(names, cleaned, strict=True)]


def layer_name(parameter: str) -> str:
    """Give the layer's name: the parameter's without ``.weight`` (``.weight.tensor`` in tensorly's layers).

    >>> layer_name("model.layers.0.self_attn.q_proj.weight"), layer_name("attn.in_proj_weight")
    ('model.layers.0.self_attn.q_proj', 'attn.in_proj_weight')
    """
    if parameter.endswith("weight.tensor"):
        parameter = parameter.removesuffix(".tensor")
    return parameter.removesuffix(".weight")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts ``layers.2`` before ``layers.10``."""
    pieces = _NUMBERS.split(name)
    return tuple((0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in pieces)


def canonical_name(name: str) -> str:
    """Map the known forms of a layer's name onto one, so that a live model pairs with its saved file.

    transformers fuses the experts of a live model and saves them one by one, under the names of the first release
    (as it does routers and GPT-NeoX's output layer).

    >>> canonical_name("model.layers.0.mlp.experts.gate_up_proj[3].gate")
    'model.layers.0.mlp.experts.3.gate_proj'
    >>> canonical_name("model.layers.0.block_sparse_moe.experts.3.w1")
    'model.layers.0.mlp.experts.3.gate_proj'
    """
    name = re.sub(r"(^|\.)block_sparse_moe(?=\.)", r"\1mlp", name)
    name = re.sub(r"^embed_out$", "lm_head", name)
    name = re.sub(r"(^|\.)mlp\.router(?:\.layer)?$", r"\1mlp.gate", name)
    name = re.sub(r"experts\.gate_up_proj\[(\d+)\]\.(gate|up)\b", r"experts.\1.\2_proj", name)
    name = re.sub(r"experts\.(\w+)\[(\d+)\]", r"experts.\2.\1", name)
    name = re.sub(r"(input_linear|output_linear)\[(\d+)\](\.gate|\.up)?$", _from_granite, name)
    return re.sub(r"experts\.(\d+)\.(w[123])$", lambda m: f"experts.{m[1]}.{_MIXTRAL[m[2]]}", name)


def _from_granite(match: re.Match[str]) -> str:
    """Granite's fused experts: ``input_linear[3].gate`` is the gate of expert 3."""
    projection = _LINEARS.get(match[1] + (match[3] or ""))
    return f"experts.{match[2]}.{projection}" if projection else match[0]
