"""Names of parameters and layers: removal of wrapper prefixes, and one canonical form of a name.

A parameter has its full name (``model.layers.0.mlp.up_proj.weight``). Its layer has the same name
without ``.weight``. This file imports no torch, because results are compared without it.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeAlias

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module"
    r"|_fpw_module)\."
)
"""Modules that torch.compile, FSDP, activation checkpointing and training frameworks insert into
names."""
_PEFT = re.compile(
    r"^base_model\.(?:model\..*\.(?:base_layer|lora|lora_\w+|hada_\w+|lokr_\w+|modules_to_save"
    r"|token_adapter|ia3_l|oft_R"
    r"|\w+_(?:A|B|R|P|u|s|lambda_\w|logits_\w|spectrum|kernel|block|delta|bias|theta|values)"
    r"|\w+_layers)(?:\.|$)"
    r"|\w+_(?:A|B|bank|theta_d)(?:\.|$))"
)
"""Names that only peft writes: its prefix ``base_model.`` together with a piece of an adapter."""
_BASE_LAYER = re.compile(r"\.base_layer(?=\.)(?!\.(?:base_layer\.)*lora_)")
"""The name that peft gives a module to which an adapter is attached. In
``experts.base_layer.lora_A`` it distinguishes adapters of two parameters of one module, and is
kept."""
_SAVED_MODULE = re.compile(r"\.modules_to_save\.[^.]+(?=\.)")
"""The path below which peft keeps a module that it trains and saves as a whole."""
_NUMBERS = re.compile(r"(\d+)")
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
"""The projections of Mixtral's experts, under their names in newer models."""
_LINEARS = {
    "input_linear.gate": "gate_proj",
    "input_linear.up": "up_proj",
    "output_linear": "down_proj",
}
"""The projections of Granite's fused experts, under their names in other models."""


def clean_names(names: Sequence[str]) -> list[str]:
    """Remove what DDP, FSDP, torch.compile and peft add to the names of a model's parameters.

    Names that only wrappers use are removed wherever they occur. ``module`` and ``model`` are also
    the names of real modules, so they are removed only where all parameters share them and another
    sign shows that a wrapper added them. If two parameters would get the same name, both keep their
    stored one.

    >>> clean_names(["module.layers.0._orig_mod.q.weight", "module.head.weight"])
    ['layers.0.q.weight', 'head.weight']
    """
    cleaned = _outside_taken_off([_WRAPPERS.sub("", name) for name in names])
    if any(_PEFT.search(name) for name in cleaned):
        # A module that is saved whole appears twice; its trained copy gets the name.
        saved = {
            name.partition(".modules_to_save.")[0]
            for name in cleaned
            if ".modules_to_save." in name
        }
        cleaned = [_without_peft(name, saved) for name in cleaned]
        # peft may have wrapped a model that was wrapped already.
        cleaned = _outside_taken_off([_WRAPPERS.sub("", name) for name in cleaned])
    # Prompt tuning of peft wraps the model as ``base_model``, without the level ``model``.
    if any(name.startswith("prompt_encoder.") for name in cleaned):
        cleaned = [name.removeprefix("base_model.") for name in cleaned]
    return _unique(names, _inner_modules_taken_off(cleaned))


def _outside_taken_off(names: list[str]) -> list[str]:
    """Remove a leading ``module.`` or ``model.`` that a wrapper added to all names.

    A shared first component is not enough: all names of a Llama with tied embeddings begin with
    ``model.``. But ``model.model.`` occurs only if something, such as a LightningModule, holds the
    network as its ``model``. The prefix ``base_model.model.`` of peft may stand inside such a
    wrapper too.
    """
    # torch.optim.swa_utils.AveragedModel counts its updates beside the ``module`` that it holds.
    shared = [name for name in names if name != "n_averaged"]
    while shared:
        # Wrappers can be nested, so remove one level at a time.
        first = shared[0].partition(".")[0]
        inside = _INSIDE.get(first) or (f"{first}.base_model.model.",)
        if not all(name.startswith(f"{first}.") for name in shared) or not any(
            name.startswith(inside) for name in shared
        ):
            break
        shared = [name.removeprefix(f"{first}.") for name in shared]
        names = [name.removeprefix(f"{first}.") for name in names]
    return names


_Tree: TypeAlias = dict[str, "_Tree"]
"""The modules below a module, by their names."""
_INSIDE = {
    "module": ("module.",),
    "model": ("model.model.", "model.base_model.model."),
    "base_model": ("\0",),
}
"""Possible wrappers, each with prefixes of which some name must have one; otherwise the component
is a real module. ``base_model`` is never removed here."""


def lightning_names(names: Sequence[str]) -> list[str]:
    """Remove the attribute under which a LightningModule keeps its network.

    Names stay as they are if not all parameters lie under one such attribute.

    >>> lightning_names(["net.0.weight", "net.2.weight"])
    ['0.weight', '2.weight']
    >>> lightning_names(["net.0.weight", "loss.weight"])
    ['net.0.weight', 'loss.weight']
    """
    # DeepSpeed's strategy puts this wrapper around the whole LightningModule.
    names = [name.removeprefix("_forward_module.") for name in names]
    first = {name.partition(".")[0] for name in names}
    if len(first) != 1 or not first <= _HOLDERS:
        return list(names)
    rest = [name.partition(".")[2] for name in names]
    return rest if all("." in name for name in rest) else list(names)


_HOLDERS = frozenset({"model", "_model", "net", "network", "module"})
"""Attributes under which LightningModules usually keep their network."""


def _inner_modules_taken_off(names: list[str]) -> list[str]:
    """Remove the ``module`` of a data-parallel part of a model: ``encoder.module.conv.weight``.

    A wrapper added it if the part has a name, holds nothing else, and several modules lie below it.
    In lists of layers (``layers.0.module`` in LeViT) it is a module of the model.
    """
    # A tree, {"encoder": {"module": {"conv": {...}}}}: the paths of all its modules would take
    # memory that grows with the square of a name's length.
    tree: _Tree = {}
    for name in names:
        node = tree
        for part in name.split("."):
            node = node.setdefault(part, {})
    return [".".join(_without_inner_modules(name.split("."), tree)) for name in names]


def _without_inner_modules(parts: Sequence[str], tree: _Tree) -> Iterator[str]:
    """Yield the components of a name that no data-parallel wrapper added."""
    inside, wrapper = tree, False
    for part in parts:
        if not wrapper:
            yield part
        inside = inside[part]
        below = inside.get("module", {})
        wrapper = (
            len(inside) == 1
            and not part.isdigit()
            and len(below) > 1
            and not below.keys() & {"weight", "bias"}
        )


def _without_peft(name: str, saved: set[str]) -> str:
    """Return the name that a parameter of a peft model has in the base model.

    Args:
        name: Name of the parameter in the peft model.
        saved: Paths of the modules that peft trains and saves as a whole.

    """
    name = _BASE_LAYER.sub("", name.removeprefix("base_model.model.")).replace(
        ".token_adapter.", "."
    )
    # The original of a saved module gets the plain name only if no trained copy has it.
    head, found, tail = name.partition(".original_module.")
    if found and not any(path.endswith(head) for path in saved):
        name = f"{head}.{tail}"
    return _SAVED_MODULE.sub("", name)


def _unique(names: Sequence[str], cleaned: Sequence[str]) -> list[str]:
    """Keep the stored name wherever cleaning would give two parameters the same name."""
    counts = Counter(cleaned)
    return [
        name if counts[short] > 1 else short for name, short in zip(names, cleaned, strict=True)
    ]


def layer_name(parameter: str) -> str:
    """Return the name of a parameter's layer, which is the parameter's without ``.weight``.

    The parameters of tensorly's layers end in ``.weight.tensor``; their layers keep no ``.tensor``
    either.

    >>> layer_name("model.layers.0.self_attn.q_proj.weight"), layer_name("attn.in_proj_weight")
    ('model.layers.0.self_attn.q_proj', 'attn.in_proj_weight')
    """
    if parameter.endswith("weight.tensor"):
        parameter = parameter.removesuffix(".tensor")
    return parameter.removesuffix(".weight")


def natural_key(name: str) -> str:
    """Return a sort key that orders numbers by value: ``layers.2`` comes before ``layers.10``."""
    # One text, since a tuple of pieces takes 150 times the memory of the name. The end of what
    # stands before a number sorts before all letters. Longer numbers are larger, so that digits
    # need not become an int, which has limits.
    return _NUMBERS.sub(_number_key, name)


def _number_key(match: re.Match[str]) -> str:
    """Return a number without leading zeros behind its length, as one character."""
    number = match[0].lstrip("0")
    return f"\0{chr(min(len(number), sys.maxunicode))}{number}\0"


def canonical_name(name: str) -> str:
    """Map the known spellings of a layer's name onto one, to pair a live model with its file.

    transformers fuses the experts of a live model, but saves them one by one under the names of the
    first release. Routers and the output layer of GPT-NeoX are renamed in the same way.

    >>> canonical_name("model.layers.0.mlp.experts.gate_up_proj[3].gate")
    'model.layers.0.mlp.experts.3.gate_proj'
    >>> canonical_name("model.layers.0.block_sparse_moe.experts.3.w1")
    'model.layers.0.mlp.experts.3.gate_proj'
    """
    # Mixtral's files, GPT-NeoX's output layer, and routers under several names.
    name = re.sub(r"(^|\.)block_sparse_moe(?=\.)", r"\1mlp", name)
    name = re.sub(r"^embed_out$", "lm_head", name)
    name = re.sub(r"(^|\.)mlp\.router(?:\.layer)?$", r"\1mlp.gate", name)
    # Parts of fused experts get the names of single experts.
    name = re.sub(r"experts\.gate_up_proj\[(\d+)\]\.(gate|up)\b", r"experts.\1.\2_proj", name)
    name = re.sub(r"(?:experts|switch_mlp)\.(\w+)\[(\d+)\]", r"experts.\2.\1", name)
    name = re.sub(r"(input_linear|output_linear)\[(\d+)\](\.gate|\.up)?$", _from_granite, name)
    # Single experts under Mixtral's names.
    return re.sub(r"experts\.(\d+)\.(w[123])$", lambda m: f"experts.{m[1]}.{_MIXTRAL[m[2]]}", name)


def _from_granite(match: re.Match[str]) -> str:
    """Return the canonical name of one of Granite's fused experts (``input_linear[3].gate``)."""
    projection = _LINEARS.get(match[1] + (match[3] or ""))
    return f"experts.{match[2]}.{projection}" if projection else match[0]
