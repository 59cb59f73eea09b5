"""Adapter files: how they are called, and what lies beside them (their configuration, the base model)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from spectail.errors import SourceError
from spectail.models.assembly.adapters.known import NOTHING_KNOWN, Known, scale_from_config
from spectail.models.lazy_tensor import LazyTensor
from spectail.models.source import Source

ADAPTER = re.compile(
    r"^(?:adapter_model|adapter|adapters|pytorch_lora_weights|adapter_\w+|\d+_adapters|lora|\w+_lora|lora_\w+)\.\w+$"
)
"""Names of files that hold an adapter: peft's, MLX's, diffusers' and torchtune's, and what people call their own."""
MAIN_ADAPTER = re.compile(r"^(?:adapter_model|adapters?|pytorch_lora_weights)\.\w+$")
"""Names of the one adapter of a folder, which may hold earlier steps of it too."""
CONFIG = "adapter_config.json"

OpenFolder: TypeAlias = Callable[[Path], "Source | None"]
"""Opens the whole model of a folder; None where the folder holds none."""


def adapter_beside(path: Path, open_whole: OpenFolder) -> Known:
    """Read what the folder of a file says about the adapter in it; nothing for the file of a whole model."""
    config = _json(path.parent / CONFIG)
    if not ADAPTER.match(path.name) and not (config and not path.name.startswith(("model", "pytorch_model"))):
        return NOTHING_KNOWN
    return Known(partial(scale_from_config, config), _Base(path.parent, config, open_whole), config)


class _Base:
    """The weights of the base model, which is opened when the first of them is asked for."""

    def __init__(self, folder: Path, config: Mapping[str, Any], open_whole: OpenFolder) -> None:
        self._places = [folder]
        named = config.get("base_model_name_or_path", config.get("model"))
        if isinstance(named, str) and named:
            self._places += [Path(named).expanduser(), folder / named]
        self._open = open_whole
        self._weights: Mapping[str, LazyTensor] | None = None

    def __call__(self, target: str) -> LazyTensor | None:
        """Find the weight of a layer: by its whole name, else as the only one of which one name ends with the other."""
        if self._weights is None:
            self._weights = self._read()
        if target in self._weights:
            return self._weights[target]
        found = [
            w for name, w in self._weights.items() if f".{name}".endswith(f".{target}") or target.endswith(f".{name}")
        ]
        return found[0] if len(found) == 1 else None

    def _read(self) -> Mapping[str, LazyTensor]:
        """List the weights of the first place that holds a whole model."""
        for place in self._places:
            if not place.is_dir():
                continue
            try:
                source = self._open(place)
            except (SourceError, OSError):
                continue  # the adapter can be measured without its base, and its row says so
            if source is not None:
                return {layer.tensor.name.removesuffix(".weight"): layer.tensor for layer in source.layers}
        return {}


def _json(path: Path) -> Mapping[str, Any]:
    """Read a configuration; one that is missing or damaged says nothing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, Mapping) else {}
