"""safetensors: described from the header, read one piece at a time.

The ``safetensors`` library maps a file into memory, so that the process dies if the file is
truncated meanwhile (see ``open_file``). The format is simple enough to be read by position. Format
and checks are those of the library's README, section "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch

from spectail.basics.schema import Count, SchemaError, checked
from spectail.errors import SourceError
from spectail.models.formats.channels_last import from_flax, from_mlx
from spectail.models.formats.format import Contents, Format
from spectail.models.formats.open_file import ReadableFile
from spectail.models.formats.ranges import StoredArray, row_major, stored_tensor
from spectail.models.lazy_tensor import LazyTensor, unreadable
from spectail.models.naming.names import natural_key

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "BOOL": torch.bool,
    "I8": torch.int8,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
"""Names of types in the header, and torch's types."""
_NEW_TYPES = {"F8_E8M0": "float8_e8m0fnu", "U16": "uint16", "U32": "uint32", "U64": "uint64"}
"""Types that only newer versions of torch have."""
_TYPES |= {
    name: getattr(torch, dtype) for name, dtype in _NEW_TYPES.items() if hasattr(torch, dtype)
}
_LONGEST_HEADER = 100_000_000
"""Bytes; the library has the same limit."""


class _Entry(msgspec.Struct):
    """What a header says about one tensor."""

    dtype: str
    shape: tuple[Count, ...]
    data_offsets: tuple[Count, Count]
    """The first byte, and the byte after the last one, counted from the end of the header."""


class _DamageError(ValueError):
    """A description of what is wrong with a header."""


def read_safetensors(files: Sequence[ReadableFile]) -> Contents:
    """Describe the tensors of one or several files; numbers in names are sorted as numbers.

    The files do not keep the model's order.
    """
    where: dict[str, str] = {}
    tensors = []
    for file in files:
        for stored in _tensors_of(file):
            if stored.name in where:
                raise SourceError(
                    f"tensor {stored.name!r} is in both {where[stored.name]} and {file.name}; "
                    "each tensor may be in one shard only"
                )
            where[stored.name] = file.name
            tensors.append(stored)
    return Contents(sorted(from_flax(tensors), key=lambda stored: natural_key(stored.name)))


def _tensors_of(file: ReadableFile) -> list[LazyTensor]:
    """Describe the tensors of one file."""
    if file.size == 0:
        raise SourceError(f"{file.path} is empty; expected a safetensors file")
    try:
        start, header = _header(file)
        metadata = header.pop("__metadata__", None) or {}
        entries = checked(dict[str, _Entry], header)
        _check_ranges(entries, file.size - start)
        tensors = [_tensor(file, start, name, entry) for name, entry in entries.items()]
        return [from_mlx(t) for t in tensors] if metadata.get("format") == "mlx" else tensors
    except (_DamageError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        known = isinstance(error, _DamageError | SchemaError)
        reason = str(error) if known else "its header is damaged"
        raise SourceError(
            f"{file.path} is not a readable safetensors file ({reason}): "
            "it is truncated or of another format"
        ) from None


def _header(file: ReadableFile) -> tuple[int, dict[str, Any]]:
    """Return where the data begins, and the header with unique names."""
    # A file is 8 bytes with the header's length, the header as JSON, then the data.
    length = int.from_bytes(file.read(0, 8), "little")
    if file.size < 8 or length > min(file.size - 8, _LONGEST_HEADER):
        raise _DamageError("its header is longer than the file")
    header = json.loads(
        bytes(file.read(8, length)).decode("utf-8"), object_pairs_hook=_without_doubles
    )
    if not isinstance(header, dict):
        raise _DamageError("its header is no JSON object")
    return 8 + length, header


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict from a JSON object; refuse two entries of one name."""
    # JSON would silently keep the last one.
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _DamageError("its header has two entries of one name")
    return result


def _check_ranges(entries: Mapping[str, _Entry], size: int) -> None:
    """Check that the tensors fill the data one after the other, without gap or overlap."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        begin, stop = entry.data_offsets
        # Overlapping ranges could make two layers share bytes, and a gap could hide others.
        if begin != end or stop < begin:
            raise _DamageError(f"the data of {name!r} does not begin where that of another ends")
        end = stop
    if end != size:
        raise _DamageError(f"its header announces {end} bytes of data and {size} follow")


def _tensor(file: ReadableFile, start: int, name: str, entry: _Entry) -> LazyTensor:
    """Describe one tensor by its entry in the header."""
    shape, dtype = entry.shape, _TYPES.get(entry.dtype)
    # An unknown type concerns one tensor. The others can still be measured.
    if dtype is None:
        kind = entry.dtype
        return unreadable(
            name, shape, kind.lower(), f"stored as {kind}, a type that torch cannot compute with"
        )
    begin, stop = entry.data_offsets
    if stop - begin != math.prod(shape) * dtype.itemsize:
        raise _DamageError(
            f"{name!r} has {stop - begin} bytes, its shape and type need another number"
        )
    return stored_tensor(name, StoredArray(file, start + begin, dtype, shape, row_major(shape)))


def _looks_like(start: bytes, size: int) -> bool:
    """Whether the file begins with a length that fits into it, followed by a JSON object."""
    # No other known format begins with a small number and a brace.
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size


FORMAT = Format(
    name="a safetensors file",
    suffixes=(".safetensors",),
    read=read_safetensors,
    looks_like=_looks_like,
)
