"""The header of a GGUF file: its metadata, and where each tensor lies.

The ``gguf`` library's own reader spends seconds on a model's vocabulary (SmolLM2: 4 s, more than
half of its analysis), which is not needed here; this reader steps over it. A test compares the two.
The format is that of ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from spectail.errors import SourceError
from spectail.models.formats.file_path import FilePath
from spectail.models.formats.open_file import ReadableFile

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""``struct`` codes of the metadata types that are single numbers."""
_STRING, _ARRAY = 8, 9
_LONGEST_ARRAY = 4096
"""Arrays of numbers up to this length are kept (they hold values per block). Longer arrays and
arrays of texts are stepped over."""
_MOST_DIMENSIONS = 4
"""The most dimensions of a tensor that the format allows."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file; ``shape`` is in torch's order, the fastest dimension last."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    """Bytes from the beginning of the file."""


@dataclass(frozen=True)
class GgufHeader:
    """The metadata without long arrays, and the tensors in the file's order."""

    metadata: dict[str, object]
    tensors: tuple[GgufTensor, ...]


_FIRST_BYTES = 2**20
"""Bytes that are read first. A vocabulary of 260,000 texts takes about 6 MiB."""
_LONGEST_HEADER = 2**30
"""Bytes after which a header is taken to be damaged."""


def read_header(file: ReadableFile) -> GgufHeader:
    """Parse the header of a GGUF file.

    A header does not say how long it is, so more bytes are read until it is complete.

    Raises:
        SourceError: The file is empty, of another format or version, or its header is damaged.

    """
    if file.size == 0:
        raise SourceError(f"{file.path} is empty; expected a GGUF file")
    start = bytes(file.read(0, 4))
    if start != b"GGUF":
        raise SourceError(
            f"{file.path} is not a GGUF file: "
            f"expected it to begin with b'GGUF', it begins with {start!r}"
        )
    size = _FIRST_BYTES
    data = file.read(0, size)
    while True:
        try:
            return _Cursor(data, file.path).header()
        except (struct.error, UnicodeDecodeError, IndexError, OverflowError, ValueError):
            if size >= min(file.size, _LONGEST_HEADER):
                raise SourceError(
                    f"the header of {file.path} ends early or is damaged; download the file again"
                ) from None
            # Too few bytes look like damage: it is damage only if the whole file was read.
            size *= 4
            data += file.read(len(data), size - len(data))


class _Cursor:
    """A position in the first bytes of a file; each read moves it forward."""

    def __init__(self, data: bytearray, path: FilePath) -> None:
        """Start after the magic number of four bytes."""
        self.data, self.path, self.position = data, path, 4

    def number(self, code: str) -> int:
        """Read one number of a ``struct`` code."""
        layout = struct.Struct("<" + code)
        value: int = layout.unpack_from(self.data, self.position)[0]
        self.position += layout.size
        return value

    def text(self) -> str:
        """Read a length and that many bytes of UTF-8."""
        size = self.number("Q")
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise IndexError
        return self.data[start : self.position].decode("utf-8")

    def value(self, kind: int) -> object:
        """Read one metadata value; a value that is stepped over gives None."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(kind)
        item, count = self.number("I"), self.number("Q")
        if item in _SCALARS:
            # One call reads the whole array. The layout of
            # a longer one is empty, so that it is skipped.
            layout = struct.Struct(f"<{count if count <= _LONGEST_ARRAY else 0}{_SCALARS[item]}")
            values = list(layout.unpack_from(self.data, self.position))
            self.position += count * struct.calcsize("<" + _SCALARS[item])
            return values if count <= _LONGEST_ARRAY else None
        if item == _STRING:
            self.skip_texts(count)
        else:
            for _ in range(count):
                self.value(item)
        return None

    def skip_texts(self, count: int) -> None:
        """Step over an array of texts; a vocabulary has hundreds of thousands."""
        data, position, size_at = self.data, self.position, struct.Struct("<Q").unpack_from
        for _ in range(count):
            position += 8 + size_at(data, position)[0]
        self.position = position

    def header(self) -> GgufHeader:
        """Parse everything that follows the magic number."""
        version = self.number("I")
        if version not in {2, 3}:
            # In a big-endian file the low bytes of the version are zero.
            big = "a big-endian file or " if version & 0xFFFF == 0 else ""
            raise SourceError(
                f"{self.path} is {big}of GGUF version {version}; "
                "versions 2 and 3, little-endian, are read"
            )
        n_tensors, n_values = self.number("Q"), self.number("Q")
        metadata: dict[str, object] = {}
        for _ in range(n_values):
            key = self.text()
            value = self.value(self.number("I"))
            if value is not None:
                metadata[key] = value
        infos = [self.tensor_info() for _ in range(n_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(alignment)
        # The data begins at the next multiple of the alignment: a division rounded up.
        start = -(-self.position // alignment) * alignment
        tensors = tuple(
            GgufTensor(name, shape, kind, start + offset) for name, shape, kind, offset in infos
        )
        return GgufHeader(metadata, tensors)

    def tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Read the name, shape (stored fastest first), type and offset of one tensor."""
        name = self.text()
        n_dimensions = self.number("I")
        if n_dimensions > _MOST_DIMENSIONS:
            raise ValueError(n_dimensions)
        shape = tuple(self.number("Q") for _ in range(n_dimensions))[::-1]
        if math.prod(shape) >= 2**63:
            raise ValueError(shape)
        return name, shape, self.number("I"), self.number("Q")
