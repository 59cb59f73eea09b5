"""Flax: parameters in msgpack, as ``flax.serialization.to_bytes`` and transformers write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spectail.errors import SourceError
from spectail.models.formats.channels_last import as_torch
from spectail.models.formats.format import Contents, Format
from spectail.models.formats.msgpack import Walker
from spectail.models.formats.open_file import ReadableFile
from spectail.models.formats.ranges import StoredArray, stored_tensor
from spectail.models.lazy_tensor import LazyTensor
from spectail.models.naming.names import natural_key

_NO_PARAMETERS = ("opt_state", "optimizer", "batch_stats", "step", "rng", "dropout_rng", "cache")
"""Keys of a training state that hold no parameters of the model."""


def read_flax(files: Sequence[ReadableFile]) -> Contents:
    """Describe the parameters of one or several files; numbers in names are sorted as numbers."""
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        for path, stored in _arrays(_parameters(_tree(file))):
            if path in tensors:
                raise SourceError(f"array {path!r} is in {file.name} and in an earlier shard")
            tensors[path] = stored
    if not tensors:
        raise SourceError(
            f"{files[0].path} holds no arrays; expected the parameters of a Flax model"
        )
    return Contents(sorted(as_torch(tensors), key=lambda stored: natural_key(stored.name)))


def _tree(file: ReadableFile) -> Mapping[str, Any]:
    """Read the structure of one file."""
    if file.size == 0:
        raise SourceError(f"{file.path} is empty; expected a msgpack file of Flax")
    try:
        walker = Walker(file)
        tree = walker.value()
        # Bytes after the first value mean that the file is not
        # msgpack: almost any file begins with a valid value.
        whole = walker.position == file.size
    except SourceError:
        raise
    except Exception:  # noqa: BLE001 - damaged lengths may lead anywhere
        whole, tree = False, None
    if not whole or not isinstance(tree, Mapping):
        raise SourceError(
            f"{file.path} is not a readable msgpack file of Flax: "
            "it is truncated or of another format"
        )
    return tree


def _parameters(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters from a training state or from a dict of variable collections."""
    # A training state holds ``params``, and they may hold the
    # collections of ``Module.init`` with ``params`` again.
    while isinstance(tree.get("params"), Mapping):
        tree = tree["params"]
    return {key: value for key, value in tree.items() if key not in _NO_PARAMETERS}


def _arrays(value: Any, path: str = "") -> Iterator[tuple[str, LazyTensor]]:
    """Yield the arrays of a tree with their paths."""
    if isinstance(value, StoredArray):
        yield path, stored_tensor(path, value)
    # Arrays in chunks, and arrays that cannot be read.
    elif isinstance(value, LazyTensor):
        yield path, value
    elif isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _arrays(inner, f"{path}.{key}" if path else str(key))


FORMAT = Format(
    name="a msgpack file of Flax",
    suffixes=(".msgpack",),
    read=read_flax,
)
