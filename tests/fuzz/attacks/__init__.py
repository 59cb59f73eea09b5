"""Files made on purpose to hang a reader, fill its memory, run code or read other files.

Each attack writes an input into a folder and returns what is opened. All of them are small.
"""

from ..builders import Attack
from . import adapters, arrays, gguf_files, headers, pickles, settings

LOADERS: dict[str, dict[str, Attack]] = {
    "safetensors": headers.SAFETENSORS,
    "index": headers.INDEX,
    "config": settings.CONFIG,
    "adapter": adapters.ADAPTERS,
    "gguf": gguf_files.GGUF,
    "torch": pickles.TORCH,
    "numpy": arrays.NUMPY,
    "others": arrays.OTHERS,
}
"""Attacks on each loader of models."""
