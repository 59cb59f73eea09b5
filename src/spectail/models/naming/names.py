"""Names of parameters and layers: wrappers taken off, and the known forms of one weight mapped onto one name.

A parameter has its full name (``model.layers.0.mlp.up_proj.weight``); the layer is called the same
without ``.weight``. This file imports no torch, because results are compared without it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_fpw_module)\."
)
_PEFT = re.compile(
    r"^base_model\.(?:model\..*\.(?:base_layer|lora|lora_\w+|hada_\w+|lokr_\w+|modules_to_save|token_adapter|ia3_l|oft_R"
    r"|\w+_(?:A|B|R|P|u|s|lambda_\w|logits_\w|spectrum|kernel|block|delta|bias|theta|values)|\w+_layers)(?:\.|$)"
    r"|\w+_(?:A|B|bank|theta_d)(?:\.|$))"
)
"""What only peft puts into names: its prefix together with a piece of an adapter."""
_BASE_LAYER = re.compile(r"\.base_layer(?=\.)(?!\.(?:base_layer\.)*lora_)")
"""peft's name for what an adapter is attached to. In ``experts.base_layer.lora_A`` it tells
adapters of two parameters of one module apart, and stays."""
_SAVED_MODULE = re.compile(r"\.modules_to_save\.[^.]+(?=\.)")
_NUMBERS = re.compile(r"(\d+)")
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_LINEARS = {
    "input_linear.gate": "gate_proj",
    "input_linear.up": "up_proj",
    "output_linear": "down_proj",
}


def clean_names(names: Sequence[str]) -> list[str]:
    """Take what training wrappers put around the names of a model's parameters: DDP, FSDP, torch.compile, peft.

    Wrappers with names of their own go wherever they stand. ``module`` and ``model`` are names of
    real modules too: they go where all parameters share them and more says that they are a
    wrapper's.

    >>> clean_names(["module.layers.0._orig_mod.q.weight", "module.head.weight"])
    ['layers.0.q.weight', 'head.weight']
    """
    cleaned = _outside_taken_off([_WRAPPERS.sub("", name) for name in names])
    if any(_PEFT.search(name) for name in cleaned):
        saved = {
            name.partition(".modules_to_save.")[0]
            for name in cleaned
            if ".modules_to_save." in name
        }
        cleaned = [_without_peft(name, saved) for name in cleaned]
        cleaned = _outside_taken_off([_WRAPPERS.sub("", name) for name in cleaned])
    if any(name.startswith("prompt_encoder.") for name in cleaned):
        cleaned = [name.removeprefix("base_model.") for name in cleaned]
    return _unique(names, _inner_modules_taken_off(cleaned))


def _outside_taken_off(names: list[str]) -> list[str]:
    """Take off ``module.`` and ``model.`` that all names begin with and that are a wrapper's.

    All names of a tied Llama begin with ``model.`` as well; but ``model.model.`` is only in what
    something, such as a LightningModule, holds as its ``model``. peft's ``base_model.model.``
    stands at the beginning of its own model.
    """
    while names:
        first = names[0].partition(".")[0]
        inside = _INSIDE.get(first) or (f"{first}.base_model.model.",)
        if not all(name.startswith(f"{first}.") for name in names) or not any(
            name.startswith(inside) for name in names
        ):
            break
        names = [name.removeprefix(f"{first}.") for name in names]
    return names


_INSIDE = {
    "module": ("module.",),
    "model": ("model.model.", "model.base_model.model."),
    "base_model": ("\0",),
}
"""What some name must begin with, for the first piece that all names share to be a wrapper's."""


def lightning_names(names: Sequence[str]) -> list[str]:
    """Take off the attribute under which a LightningModule keeps its network, where everything lies under one.

    >>> lightning_names(["net.0.weight", "net.2.weight"]), lightning_names(["net.0.weight", "loss.weight"])
    (['0.weight', '2.weight'], ['net.0.weight', 'loss.weight'])
    """
    first = {name.partition(".")[0] for name in names}
    if len(first) != 1 or not first <= _HOLDERS:
        return list(names)
    rest = [name.partition(".")[2] for name in names]
    return rest if all("." in name for name in rest) else list(names)


_HOLDERS = frozenset({"model", "_model", "net", "network", "module", "_forward_module"})
"""Attributes under which LightningModules usually keep their network."""


def _inner_modules_taken_off(names: list[str]) -> list[str]:
    """Take off the ``module`` of a data-parallel part of a model, ``encoder.module.conv.weight``.

    It is a wrapper's where the part holds nothing else and has a name; in lists of layers (LeViT's
    ``layers.0.module``) it is a module of the model.
    """
    parts: dict[str, set[str]] = {}
    for name in names:
        pieces = name.split(".")
        for length in range(1, len(pieces)):
            parts.setdefault(".".join(pieces[:length]), set()).add(pieces[length])
    wrapped = {
        part
        for part, inside in parts.items()
        if inside == {"module"}
        and not part.rpartition(".")[2].isdigit()
        and len(parts.get(f"{part}.module", ())) > 1
        and not parts[f"{part}.module"] & {"weight", "bias"}
    }
    if not wrapped:
        return names
    pattern = re.compile(
        rf"^({'|'.join(re.escape(part) for part in sorted(wrapped, key=len, reverse=True))})\.module\."
    )
    return [pattern.sub(r"\1.", name) for name in names]


def _without_peft(name: str, saved: set[str]) -> str:
    """Give a peft model's parameter the name it has in the base model; ``saved`` are modules that are saved whole."""
    name = _BASE_LAYER.sub("", name.removeprefix("base_model.model.")).replace(
        ".token_adapter.", "."
    )
    head, found, tail = name.partition(".original_module.")
    if found and not any(path.endswith(head) for path in saved):
        name = f"{head}.{tail}"
    return _SAVED_MODULE.sub("", name)


def _unique(names: Sequence[str], cleaned: Sequence[str]) -> list[str]:
    """Keep the stored name wherever cleaning would make two parameters share one."""
    counts = Counter(cleaned)
    return [
        name if counts[short] > 1 else short for name, short in zip(names, cleaned, strict=True)
    ]


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

    transformers fuses the experts of a live model and saves them one by one, under the names of the
    first release (as it does routers and GPT-NeoX's output layer).

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
