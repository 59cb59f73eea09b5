"""What a model's configuration says about the sub-model that a tensor lies in.

Configurations are those of transformers (``config.json``), of remote-code models with their own
keys, and the few values that a GGUF header states. A multi-modal configuration contains one
configuration for each sub-model, and the components of a tensor's name tell which one applies. If
none applies, the answer is an empty mapping rather than the configuration of another sub-model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from spectail.models.naming.blocks import block_of

Config: TypeAlias = Mapping[str, Any]
"""A model's configuration, or a part of it."""

_SYNONYMS: tuple[tuple[frozenset[str], re.Pattern[str]], ...] = (
    (
        frozenset({"vision", "visual", "image", "vit"}),
        re.compile(r"vision|visual|image|^vit$|^vit_"),
    ),
    (frozenset({"audio", "speech", "sound"}), re.compile(r"audio|speech|sound")),
    (frozenset({"text", "llm", "language"}), re.compile(r"language|^text|^llm")),
)
"""What sub-configurations are called, with the components of tensor names that mean the same
sub-model."""
_BETWEEN = re.compile(r"projector|connector")
"""Parts that connect two sub-models; the configuration of the whole model describes them."""
_TEXT = ("text", "llm", "language", "thinker")
"""What the sub-configuration of the language model is called."""
_SETTINGS = frozenset({"attn", "ffn", "quantization", "generation", "rope"})
"""Nested settings of one model, which are no sub-models."""

QUERY = ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_query_heads")
"""Keys for the number of query heads."""
KEY_VALUE = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "num_query_groups")
"""Keys for the number of key and value heads."""
HEAD_SIZE = ("head_dim", "kv_channels", "attention_head_dim")
"""Keys for the size of one head."""
GROUPS = ("multi_query_group_num",)
"""Key for the number of key and value heads of ChatGLM, if it has ``multi_query_attention``."""
WIDTH = ("hidden_size", "n_embd", "d_model", "embed_dim", "model_dim")
"""Keys for the width of the model."""

TOO_LARGE = 2**31
"""No model has a size like this; a damaged configuration may state any number."""


class Configuration(dict[str, Any]):
    """A model's configuration that looks for its sub-models once, and not for every tensor."""

    @cached_property
    def sub_models(self) -> dict[str, Configuration]:
        """The configurations of the sub-models, by what they describe: ``vision`` or ``text``."""
        return {
            _role(key) or key: Configuration(value)
            for key, value in self.items()
            if is_sub_model(key, value)
        }


def sub_config(config: Config, name: str) -> Config:
    """Return the configuration of the sub-model that the tensor lies in; empty if there is none.

    >>> both = {"text_config": {"n_head": 4}, "vision_config": {"num_heads": 2}}
    >>> sub_config(both, "model.visual.blocks.0.attn.qkv")
    {'num_heads': 2}
    >>> sub_config(both, "model.layers.0.mlp.up_proj")
    {'n_head': 4}
    """
    config = config if isinstance(config, Configuration) else Configuration(config)
    components = name.split(".")
    for i, component in enumerate(components):
        # Descend one level for each component that names a sub-model.
        found = _meant(config, component)
        if found is not None:
            return sub_config(found, ".".join(components[i + 1 :]))
    if any(_BETWEEN.search(component) for component in components):
        return config
    # A text model's heads must not be applied to a vision tower.
    if _is_foreign(components):
        return {} if _is_text(config) or config.sub_models else config
    # Names without a telling component belong to the language model.
    for role in _TEXT:
        if role in config.sub_models:
            return sub_config(config.sub_models[role], name)
    return config


def _meant(config: Configuration, component: str) -> Configuration | None:
    """Find the sub-configuration that one component of a name refers to."""
    subs = config.sub_models
    if component in subs:
        return subs[component]
    if not subs:
        return None
    for words, pattern in _SYNONYMS:
        if pattern.search(component):
            return next((sub for role, sub in subs.items() if role in words), None)
    return next((sub for role, sub in subs.items() if component.startswith(role)), None)


def _role(key: str) -> str | None:
    """Return what a nested configuration describes: ``vision`` for ``vision_config``.

    The result is None for nested settings that are no sub-model.
    """
    role = key.removesuffix("_config")
    named = role != key or key in {"encoder", "decoder"}
    return role if named and role not in _SETTINGS else None


def is_sub_model(key: str, value: Any) -> bool:
    """Whether an entry of a configuration is the configuration of a sub-model."""
    return isinstance(value, Mapping) and _role(key) is not None


def _is_text(config: Config) -> bool:
    """Whether a configuration describes a language model, which has a vocabulary."""
    return "vocab_size" in config


def _is_foreign(components: Sequence[str]) -> bool:
    """Whether a name lies in a vision or audio part, which no text configuration describes."""
    return any(
        pattern.search(component) for _, pattern in _SYNONYMS[:2] for component in components
    )


def family_of(config: Config) -> str:
    """Return the ``model_type``, or an empty text if the configuration states none."""
    family = config.get("model_type")
    return family if isinstance(family, str) else ""


@dataclass(frozen=True)
class Heads:
    """How many attention heads a layer has, and how many rows each has."""

    query: int
    """Number of query heads."""
    key_value: int
    """Number of key heads, which is also the number of value heads."""
    size: int | None
    """Rows of one head; None if the configuration does not tell."""

    @property
    def grouped(self) -> bool:
        """Whether several query heads share one key and value head."""
        return self.key_value != self.query


def heads_of(config: Config, name: str) -> Heads | None:
    """Read the heads of the attention module that a tensor belongs to; None if they are not stated.

    Where the configuration lists a value for each block, the tensor's block selects it.
    """
    block = block_of(name)
    query = number(config, QUERY, block)
    if query is None:
        return None
    size = number(config, HEAD_SIZE, block)
    width = number(config, WIDTH, block)
    # Most configurations leave the size out if it is the width divided by the heads.
    if size is None and width is not None and width % query == 0:
        size = width // query
    return Heads(query, _key_value_heads(config, block) or query, size)


def _key_value_heads(config: Config, block: int | None) -> int | None:
    """Read the number of key and value heads, under the keys that different families use."""
    # MPT and DBRX keep their attention settings one level deeper.
    settings = config.get("attn_config")
    settings = settings if isinstance(settings, Mapping) else {}
    # Falcon-7B states both num_kv_heads = 71 and multi_query; only the new decoder uses the number.
    one = config.get("multi_query") and not config.get("new_decoder_architecture")
    if one or settings.get("attn_type") == "multiquery_attention":
        return 1
    if config.get("multi_query_attention"):
        return number(config, GROUPS, block)
    return number(config, KEY_VALUE, block) or number(settings, KEY_VALUE, block)


def number(config: Config, keys: Sequence[str], block: int | None = None) -> int | None:
    """Return the first positive integer of a sensible size under one of the keys.

    A list under a key has one entry for each block; ``block`` selects it.
    """
    for key in keys:
        value = config.get(key)
        if isinstance(value, list | tuple):
            value = value[block] if block is not None and block < len(value) else None
        # True is an integer in Python, and would count as one head.
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < TOO_LARGE:
            return value
    return None
