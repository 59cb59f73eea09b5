"""safetensors: described from the header, read one piece at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from spectail.errors import SourceError
from spectail.models.lazy_tensor import Index, LazyTensor
from spectail.models.naming.names import natural_key

_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "BOOL": "bool",
    "I8": "int8",
    "U8": "uint8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}


def read_safetensors(paths: Iterable[Path]) -> list[LazyTensor]:
    """Describe the tensors of one or several files, numbers in names in counting order (files do not keep theirs)."""
    where: dict[str, Path] = {}
    tensors = []
    for path in paths:
        file = _checked_open(path).mapped
        for name in file.keys():  # noqa: SIM118
            if name in where:
                raise SourceError(
                    f"tensor {name!r} is in both {where[name].name} and {path.name}; "
                    "each tensor may be in one shard only"
                )
            where[name] = path
            piece = file.get_slice(name)
            dtype = _TYPES.get(piece.get_dtype(), piece.get_dtype().lower())
            problem = (
                None
                if dtype in _TYPES.values()
                else f"stored as {piece.get_dtype()}, a type that torch cannot compute with"
            )
            tensors.append(
                LazyTensor(name, tuple(piece.get_shape()), dtype, partial(_read, path, name), problem=problem)
            )
    return sorted(tensors, key=lambda stored: natural_key(stored.name))


def read_index(index: Path) -> tuple[list[Path], list[str]]:
    """List the files that an index names, each checked to lie in the index's folder, and the tensors it names.

    Raises:
        SourceError: the index is no index, names a shard elsewhere, or a shard is missing.

    """
    try:
        weight_map: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()), key=natural_key)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SourceError(
            f"{index} is not an index of shards: expected JSON with a 'weight_map' from tensor to file name"
        ) from None
    if not names:
        raise SourceError(f"{index} is an index of shards that names none; download the model again")
    folder = index.parent
    missing = []
    for name in names:
        if Path(name).name != name or name in {"", ".", ".."} or "\\" in name:
            raise SourceError(f"{index} names the shard {name!r} outside of its own folder; expected plain file names")
        if not (folder / name).is_file():
            missing.append(name)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(f"shard {missing[0]}{more} of {index} is missing; download the model again")
    return [folder / name for name in names], list(weight_map)


def _checked_open(path: Path) -> _File:
    """Open a file, with one clear line where it is not a safetensors file."""
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty; expected a safetensors file")
    try:
        return _open(path)
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ").splitlines()[0]
        raise SourceError(
            f"{path} is not a readable safetensors file ({reason}): it is truncated or of another format"
        ) from None


class _File:
    """A memory-mapped file that is opened anew now and then: pages that were read count as this process's memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mapped: Any = safe_open(path, framework="pt")
        self.bytes_read = 0

    def read(self, name: str, index: Index) -> Tensor:
        """The indexed piece of one tensor."""
        if self.bytes_read > _MOST_MAPPED:
            self.mapped, self.bytes_read = safe_open(self.path, framework="pt"), 0
        tensor: Tensor = self.mapped.get_slice(name)[index] if index else self.mapped.get_tensor(name)
        self.bytes_read += tensor.nbytes
        return tensor


_MOST_MAPPED = 2**28
"""Bytes that are read through one mapping."""


@lru_cache(maxsize=4)
def _open(path: Path) -> _File:
    """A few files stay open, for models are read layer by layer."""
    return _File(path)


def _read(path: Path, name: str, index: Index) -> Tensor:
    """Read the indexed piece of one tensor."""
    return _open(path).read(name, index)
