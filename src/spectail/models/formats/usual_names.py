"""The names that a model folder may hold, for places that do not list their folders."""

from __future__ import annotations

from spectail.models.formats.foreign import is_page
from spectail.models.formats.remote_path import RemotePath, open_at_once
from spectail.models.formats.stores import Store

_USUAL = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "model_index.json",
    "modules.json",
    "hf_quant_config.json",
    "quantize_config.json",
    "quant_config.json",
)
"""Names that a model folder may hold; they are asked for where the server lists none."""


def usual_names(store: Store, folder: str) -> dict[str, bool]:
    """Return which of the usual names exist in a folder, as ``Store.names`` does.

    Raises:
        AccessDeniedError: Access is denied to all of them.

    """
    paths = [RemotePath(store, folder) / name for name in _USUAL]
    open_at_once(paths)
    held = {path.name: store.files.get(path.key) for path in paths}
    found = {name: False for name, file in held.items() if file and not is_page(file)}
    if not found:
        # If access was denied to all of them, this says so.
        store.holds_file(paths[0])
    return found
