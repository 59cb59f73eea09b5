"""Adapter files: what they are called, and what lies beside them (configuration, base model)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

from spectail.basics.files import local_path
from spectail.basics.json_values import read_json
from spectail.errors import SourceError
from spectail.models.assembly.adapters.known import NOTHING_KNOWN, Known, Scale, scale_from_config
from spectail.models.assembly.adapters.spelling import is_piece
from spectail.models.formats.file_path import FilePath
from spectail.models.formats.remote_path import open_file
from spectail.models.formats.settings import check_adapter_settings
from spectail.models.lazy_tensor import LazyTensor
from spectail.models.source import Source

ADAPTER = re.compile(
    r"^(?:adapter_model|adapter|adapters|pytorch_lora_weights|adapter_\w+|\d+_adapters"
    r"|lora|\w+_lora|lora_\w+)\.\w+$"
)
"""Names of files that hold an adapter: those of peft, MLX, diffusers and torchtune, and names that
people choose themselves."""
MAIN_ADAPTER = re.compile(r"^(?:adapter_model|adapters?|pytorch_lora_weights)\.\w+$")
"""Names of a folder's final adapter; the folder may hold earlier steps of it too."""
CONFIG = "adapter_config.json"
"""peft's configuration of an adapter."""

OpenFolder: TypeAlias = Callable[[FilePath], "Source | None"]
"""Opens the whole model of a folder; returns None if the folder holds none."""


def adapter_beside(path: FilePath, tensors: Iterable[LazyTensor], open_whole: OpenFolder) -> Known:
    """Read what a file's folder states about the adapter in the file; nothing for a whole model."""
    # A whole model may lie beside an adapter's configuration.
    # Only a file whose name or tensors are an adapter's uses it.
    config = read_json(path.parent / CONFIG, dict)
    if not ADAPTER.match(path.name) and not (
        config and any(is_piece(stored.name) for stored in tensors)
    ):
        return NOTHING_KNOWN
    check_adapter_settings(path.parent / CONFIG, config)
    parts = {} if config else _from_header(path)
    for part, stated in parts.items():
        check_adapter_settings(path, stated, f"{part}.")
    scale_of = partial(_scale_of_part, parts) if parts else partial(scale_from_config, config)
    return Known(scale_of, _Base(path.parent, config, open_whole), config)


def _from_header(path: FilePath) -> dict[str, dict[str, Any]]:
    """Read the configurations that diffusers writes into a file's header, by pipeline part.

    They are stored as one flat JSON: ``{"unet.r": 4, "unet.lora_alpha": 8, ...}``.
    """
    if path.suffix != ".safetensors":
        return {}
    file = open_file(path)
    length = int.from_bytes(file.read(0, 8), "little")
    # A damaged length must not make this read the whole file.
    header = bytes(file.read(8, length)) if length <= LONGEST_HEADER else b""
    try:
        flat = json.loads(json.loads(header)["__metadata__"]["lora_adapter_metadata"])
        parts: dict[str, dict[str, Any]] = {}
        for key, value in flat.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = value
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return parts


LONGEST_HEADER = 100_000_000
"""Bytes of the longest header that the safetensors format allows."""


def _scale_of_part(parts: Mapping[str, Mapping[str, Any]], target: str, adapter: str) -> Scale:
    """Return the scale of a target from the configuration of its part of the pipeline."""
    part, _, inside = target.partition(".")
    return scale_from_config(parts.get(part, {}), inside, adapter)


class _Base:
    """The weights of the base model, which is opened when the first of them is needed."""

    def __init__(self, folder: FilePath, config: Mapping[str, Any], open_whole: OpenFolder) -> None:
        """Remember where the base model may be: the adapter's folder and the path it names."""
        self._places = [folder]
        named = config.get("base_model_name_or_path", config.get("model"))
        if isinstance(named, str) and named:
            # The name may be an absolute path, a path from the current folder or one from the
            # adapter's folder. A hub id matches none of them: nothing is downloaded for an adapter.
            self._places += [local_path(named), folder / named]
        self._open = open_whole
        self._weights: Mapping[str, LazyTensor] | None = None

    def __call__(self, target: str) -> LazyTensor | None:
        """Find a layer's weight by its whole name, or if the ends of both names match uniquely."""
        if self._weights is None:
            self._weights = self._read()
        if target in self._weights:
            return self._weights[target]
        # An adapter's names may lack the prefix of the base
        # model's (``model.``), or the other way round.
        found = [
            w
            for name, w in self._weights.items()
            if f".{name}".endswith(f".{target}") or target.endswith(f".{name}")
        ]
        return found[0] if len(found) == 1 else None

    def _read(self) -> Mapping[str, LazyTensor]:
        """List the weights of the first place that holds a whole model."""
        for place in self._places:
            try:
                source = self._open(place) if place.is_dir() else None
            except (SourceError, OSError):
                continue  # the adapter can be measured without its base, and its row says so
            if source is not None:
                return {
                    layer.tensor.name.removesuffix(".weight"): layer.tensor
                    for layer in source.layers
                }
        return {}
