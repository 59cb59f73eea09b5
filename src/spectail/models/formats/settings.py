"""Check the values that are used of ``config.json`` and of an adapter's configuration.

A damaged value must not change in silence how weights are cut, unpacked or scaled. Values that
nothing here uses are not looked at: real files hold Infinity, nulls and nested settings of many
kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from msgspec import Meta

from spectail.basics.checks import MOST_SEED
from spectail.basics.schema import SchemaError, checked
from spectail.errors import SourceError
from spectail.models.assembly.quantisation import KEYS
from spectail.models.formats.file_path import FilePath
from spectail.models.layout.configuration import (
    GROUPS,
    HEAD_SIZE,
    KEY_VALUE,
    QUERY,
    TOO_LARGE,
    WIDTH,
    Config,
    is_sub_model,
)
from spectail.models.layout.experts import COUNT

_Whole: TypeAlias = Annotated[int, Meta(ge=1, lt=TOO_LARGE)]
_WholeOr0: TypeAlias = Annotated[int, Meta(ge=0, lt=TOO_LARGE)]
# A block without attention has 0 heads, or null.
_Each: TypeAlias = list[_WholeOr0 | None]
_Factor: TypeAlias = Annotated[float, Meta(ge=-1e30, le=1e30)]


@dataclass(frozen=True)
class Setting:
    """What the value under one key may be; null always stands for a key that is not given."""

    kind: Any
    """The type that msgspec checks."""
    expected: str
    """The same in words."""


_COUNTS = Setting(
    _Whole | _Each | None, "a whole number of at least 1, or a list with one for each block"
)
_COUNTS_OR_0 = Setting(
    _WholeOr0 | _Each | None, "a whole number of at least 0, or a list with one for each block"
)
_AT_LEAST_1 = Setting(_Whole | None, "a whole number of at least 1")
_AT_LEAST_0 = Setting(_WholeOr0 | None, "a whole number of at least 0")
_FACTOR = Setting(_Factor | None, "a number of at most 1e30")
_FLAG = Setting(bool | None, "true or false")
_TEXT = Setting(str | None, "a text")
_OBJECT = Setting(dict[str, Any] | None, "a JSON object")

_MODEL = {
    **dict.fromkeys((*QUERY, *KEY_VALUE, *GROUPS, *WIDTH), _COUNTS),
    # transformers writes 0 for a head size that follows from others, and for models without
    # experts.
    **dict.fromkeys((*HEAD_SIZE, *COUNT), _COUNTS_OR_0),
    **dict.fromkeys(
        (
            "linear_num_key_heads",
            "linear_num_value_heads",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "quantization_bit",
        ),
        _AT_LEAST_0,
    ),
    **dict.fromkeys(
        (
            "multi_query",
            "multi_query_attention",
            "new_decoder_architecture",
            "tie_word_embeddings",
        ),
        _FLAG,
    ),
    **dict.fromkeys(
        ("attn_config", "ffn_config", "text_config", "quantization_config", "compression_config"),
        _OBJECT,
    ),
    "model_type": _TEXT,
    "architectures": Setting(list[str] | str | None, "a list of texts"),
}
"""What is used of a model's configuration, and of each sub-model's."""
_ATTENTION = {**dict.fromkeys(KEY_VALUE, _COUNTS_OR_0), "attn_type": _TEXT}
_EXPERTS = dict.fromkeys(COUNT, _COUNTS_OR_0)
_BLOCK = Setting(
    tuple[_Whole, _Whole] | Annotated[str, Meta(pattern=r"^[1-9]\d{0,8}x[1-9]\d{0,8}$")] | None,
    "two whole numbers of at least 1",
)
_BLOCKS = dict.fromkeys(("weight_block_size", "block_structure"), _BLOCK)
_QUANTISATION = {
    "bits": Setting(Annotated[int, Meta(ge=1, le=64)] | None, "a whole number from 1 to 64"),
    "group_size": Setting(
        Annotated[int, Meta(ge=-1, lt=TOO_LARGE)] | None, "a whole number of at least 1, or -1"
    ),
    **_BLOCKS,
    **dict.fromkeys(("quant_method", "checkpoint_format", "packing_format", "linear_class"), _TEXT),
}
"""What is used of ``quantization_config``, under whatever key or in whatever file it stands."""
_MEAN_BITS = Setting(Annotated[float, Meta(gt=0, le=64)] | None, "a number above 0, at most 64")
"""EXL2 and EXL3 state the mean over all layers, such as 3.7."""

_ADAPTER = {
    # OFT has a rank of 0 where the size of its blocks is given.
    "r": _AT_LEAST_0,
    **dict.fromkeys(("init_r", "topk", "num_cayley_neumann_terms"), _AT_LEAST_1),
    **dict.fromkeys(("lora_alpha", "alpha", "randlora_alpha", "scaling"), _FACTOR),
    **dict.fromkeys(
        ("use_rslora", "use_dora", "fan_in_fan_out", "apply_GS", "use_cayley_neumann"), _FLAG
    ),
    **dict.fromkeys(("peft_type", "base_model_name_or_path", "model"), _TEXT),
    "random_loc_seed": Setting(
        Annotated[int, Meta(ge=0, le=MOST_SEED)] | None, f"a whole number from 0 to {MOST_SEED}"
    ),
    # AdaLoRA lists which of the ranks it has kept.
    "rank_pattern": Setting(
        dict[str, _Whole | list[bool]] | None, "an object from patterns to ranks of at least 1"
    ),
    "alpha_pattern": Setting(dict[str, _Factor] | None, "an object from patterns to numbers"),
    "target_parameters": Setting(list[str] | None, "a list of names"),
    "lora_parameters": _OBJECT,
}
"""What is used of ``adapter_config.json``."""
_MLX = {"rank": _AT_LEAST_1, "scale": _FACTOR, "alpha": _FACTOR}

_GGUF = {
    "attention.head_count": _COUNTS_OR_0,
    "attention.head_count_kv": _COUNTS_OR_0,
    "attention.key_length": _AT_LEAST_0,
    "embedding_length": _AT_LEAST_0,
}
"""What is used of a GGUF header, behind the architecture's name."""
_GGUF_OWN = {
    "general.architecture": _TEXT,
    "general.type": _TEXT,
    "adapter.lora.alpha": _FACTOR,
}
"""What is used of a GGUF header, under one key for all architectures."""


def check_model_settings(path: FilePath, config: Config) -> None:
    """Refuse a model's configuration if a value that is used cannot be right.

    Raises:
        SourceError: The message names the file, the key, what was expected and what came.

    """
    for count, (where, part) in enumerate(_sub_models(config)):
        # All of them are looked through for every tensor.
        if count > _MOST_SUB_MODELS:
            raise SourceError(f"{path} describes over {_MOST_SUB_MODELS} sub-models: it is damaged")
        _check(path, part, _MODEL, where)
        _check(path, part.get("attn_config") or {}, _ATTENTION, f"{where}attn_config.")
        _check(path, part.get("ffn_config") or {}, _EXPERTS, f"{where}ffn_config.")
        for key in KEYS:
            # Other programs write texts under "quantization", which are not used.
            if isinstance(part.get(key), Mapping):
                check_quantisation(path, part[key], f"{where}{key}.")


def check_quantisation(path: FilePath, said: Any, where: str = "") -> None:
    """Refuse the settings of a quantiser in the same way."""
    if not isinstance(said, Mapping):
        raise _error(path, where.rstrip("."), _OBJECT, said)
    exact = not str(said.get("quant_method")).startswith("exl")
    kinds = _QUANTISATION if exact else {**_QUANTISATION, "bits": _MEAN_BITS}
    _check(path, said, kinds, where)
    _check_blocks(path, said, where)


def _check_blocks(path: FilePath, said: Config, where: str) -> None:
    """Check the sizes of blocks in the parts of a quantiser's settings, at any depth."""
    for key, part in said.items():
        if isinstance(part, Mapping):
            _check(path, part, _BLOCKS, f"{where}{key}.")
            _check_blocks(path, part, f"{where}{key}.")


def check_adapter_settings(path: FilePath, config: Config, where: str = "") -> None:
    """Refuse an adapter's configuration in the same way."""
    _check(path, config, _ADAPTER, where)
    _check(path, config.get("lora_parameters") or {}, _MLX, f"{where}lora_parameters.")


def check_gguf_settings(path: FilePath, architecture: str, metadata: Config) -> None:
    """Refuse a GGUF header in the same way."""
    _check(path, metadata, {f"{architecture}.{key}": kind for key, kind in _GGUF.items()}, "")
    _check(path, metadata, _GGUF_OWN, "")


def _sub_models(config: Config) -> Iterator[tuple[str, Config]]:
    """Yield a configuration and those of its sub-models, each with the keys that lead to it."""
    waiting = [("", config)]
    while waiting:
        where, part = waiting.pop()
        yield where, part
        waiting += [(f"{where}{key}.", part[key]) for key in part if is_sub_model(key, part[key])]


def _check(path: FilePath, stated: Config, kinds: Mapping[str, Setting], where: str) -> None:
    """Check every value that has a kind."""
    for key, setting in kinds.items():
        if key in stated:
            try:
                checked(setting.kind, stated[key])
            except SchemaError:
                raise _error(path, where + key, setting, stated[key]) from None


_MOST_SUB_MODELS = 100
"""The most sub-models of one model; those for text, images, sound and speech are a dozen."""
_LONGEST = 60
"""Characters of a value that an error shows."""


def _error(path: FilePath, key: str, setting: Setting, value: Any) -> SourceError:
    """Say what was expected under a key and what came."""
    shown = "null" if value is None else repr(value)
    shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."
    return SourceError(
        f"{path}: {key[-200:]} must be {setting.expected}, not {shown}; "
        "correct it, or download the file again"
    )
