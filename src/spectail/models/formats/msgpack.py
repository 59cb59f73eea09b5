"""Find where the arrays of a msgpack file lie; their bytes are stepped over and read later.

An ordinary decoder would need the whole file in memory. The format is that of the msgpack
specification. Arrays are extension type 1 of ``flax.serialization``: a msgpack list of shape, type
and bytes. Arrays above 1 GiB are cut into chunks.
"""

from __future__ import annotations

import math
import struct
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectail.models.formats.open_file import ReadableFile
from spectail.models.formats.ranges import StoredArray, row_major
from spectail.models.lazy_tensor import Index, LazyTensor, dtype_name, piece_of, unreadable

_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
"""``struct`` codes of the numbers, by the first byte of a value."""
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
"""Values that are only one byte."""
_LENGTHS = {
    0xC4: (1, "bin"),
    0xC5: (2, "bin"),
    0xC6: (4, "bin"),
    0xC7: (1, "ext"),
    0xC8: (2, "ext"),
    0xC9: (4, "ext"),
    0xD9: (1, "str"),
    0xDA: (2, "str"),
    0xDB: (4, "str"),
    0xDC: (2, "list"),
    0xDD: (4, "list"),
    0xDE: (2, "map"),
    0xDF: (4, "map"),
}
"""By the first byte of a value: how many bytes its length takes, and what it is."""
_ARRAY = 1
"""Extension type of an array."""
_CHUNKED = "__msgpack_chunked_array__"
"""Key of a dict that stands for an array in chunks."""


class Walker:
    """A position in a msgpack file; each value that is read moves it forward."""

    def __init__(self, file: ReadableFile, position: int = 0) -> None:
        """Start at a position of the file."""
        self.file, self.position = file, position

    def value(self, depth: int = 64) -> Any:
        """Read one value; an array becomes a tensor that is read later, and bytes become a range.

        Dicts, lists, numbers and texts become Python's.

        Raises:
            ValueError: The file is damaged.

        """
        # A damaged file may nest without end.
        if depth == 0:
            raise ValueError("nested too deep")
        # The first byte tells the type. For small values it
        # holds the length, or the number, as well.
        code = self._take(1)[0]
        # The ranges of first bytes are those of the specification, section "Formats".
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code < 0x90 or 0xDE <= code <= 0xDF:
            return self._map(self._count(code), depth)
        if code < 0xA0 or 0xDC <= code <= 0xDD:
            return [self.value(depth - 1) for _ in range(self._count(code))]
        if code < 0xC0 or 0xD9 <= code <= 0xDB:
            return self._take(self._count(code)).decode("utf-8")
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            return struct.unpack(_NUMBERS[code], self._take(struct.calcsize(_NUMBERS[code])))[0]
        if 0xC4 <= code <= 0xC6:
            return self._skip(self._count(code))
        if 0xC7 <= code <= 0xC9 or 0xD4 <= code <= 0xD8:
            return self._extension(self._count(code))
        raise ValueError(code)

    def _count(self, code: int) -> int:
        """Read the number of bytes or entries of a value, given its first byte."""
        if code in _LENGTHS:
            return int.from_bytes(self._take(_LENGTHS[code][0]), "big")
        if 0xD4 <= code <= 0xD8:
            return 1 << (code - 0xD4)
        return code & (0x1F if code >= 0xA0 else 0x0F)

    def _map(self, count: int, depth: int) -> Any:
        """Read a dict; one that holds the chunks of an array becomes that array."""
        entries = {str(self.value(depth - 1)): self.value(depth - 1) for _ in range(count)}
        # Flax writes shape and chunks as dicts with the keys "0", "1", ...
        if entries.get(_CHUNKED) is True:
            shape, chunks = (list(entries[key].values()) for key in ("shape", "chunks"))
            dtype = dtype_name(chunks[0].dtype)
            return LazyTensor("", tuple(shape), dtype, partial(_joined, chunks, tuple(shape)))
        return entries

    def _extension(self, size: int) -> Any:
        """Read an array, or step over another kind of extension."""
        kind = int.from_bytes(self._take(1), "big", signed=True)
        end = self.position + size
        result = None
        if kind == _ARRAY:
            shape, dtype, (offset, length) = Walker(self.file, self.position).value()
            result = _stored(self.file, offset, length, tuple(shape), dtype)
        self._skip(end - self.position)
        return result

    def _take(self, size: int) -> bytearray:
        """Read bytes and move behind them."""
        data = self.file.read(self.position, size)
        if len(data) < size:
            raise ValueError("the file ends early")
        self.position += size
        return data

    def _skip(self, size: int) -> tuple[int, int]:
        """Step over bytes; return where they begin and how many they are."""
        start = self.position
        self.position += size
        if self.position > self.file.size:
            raise ValueError("the file ends early")
        return start, size


def _stored(
    file: ReadableFile, offset: int, length: int, shape: tuple[int, ...], name: str
) -> StoredArray | LazyTensor:
    """Describe one array; one of a type that torch lacks cannot be read."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        return unreadable(
            "", shape, name, f"stored as {name}, a type that torch cannot compute with"
        )
    # Damaged numbers would otherwise lead to values of another array.
    if math.prod(shape) * dtype.itemsize != length:
        raise ValueError(name)
    return StoredArray(file, offset, dtype, shape, row_major(shape))


def _joined(chunks: list[StoredArray], shape: tuple[int, ...], index: Index) -> Tensor:
    """Read an array that is stored in flat chunks."""
    return piece_of(torch.cat([chunk.read() for chunk in chunks]).reshape(shape), index)
