"""A check that the HDF5 library lacks: the lists of free places in an HDF5 file must end.

The names in a group lie in a *local heap*. The free places in it form a list, in which each place
holds the position of the next (HDF5 file format specification, section III.D). The library follows
the list until it ends, and stores what it finds. If a damaged list leads back to itself, it fills
the memory, in C, where Ctrl-C does not reach it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from spectail.errors import SourceError
from spectail.models.formats.open_file import ReadableFile

MAGIC = b"\x89HDF\r\n\x1a\n"
"""How an HDF5 file begins."""
_HEAP = b"HEAP\0\0\0\0"
"""How a local heap begins."""
_END = 1
"""The position that ends a list."""


class CheckedStream(io.BufferedReader):
    """An HDF5 file as a stream that refuses to read a heap whose list does not end."""

    def __init__(self, file: ReadableFile, start: int) -> None:
        """Read the file from ``start`` on."""
        super().__init__(file.stream(start).detach())
        self._file, self._start = file, start
        # A block of another program's data may come first; addresses count from its end.
        places = (0, *(512 << power for power in range(40)))
        here = (place for place in places if start + place < file.size)
        self._base = start + next((at for at in here if self._bytes(start + at, 8) == MAGIC), 0)
        offset, length = _widths(self._bytes(self._base, 16))
        self._offset, self._length = offset, length
        self._ended: set[int] = set()

    def readinto(self, target: Any) -> int:
        """Read as every stream does, unless this reads a heap whose list does not end."""
        place = self._start + self.tell()
        count = super().readinto(target)
        # A heap may lie across the edge of what is read.
        before = min(len(_HEAP) - 1, place - self._start)
        data = bytes(self._bytes(place - before, before)) + bytes(memoryview(target)[:count])
        for heap in _places(data, _HEAP):
            self._check(place - before + heap)
        return count

    def _check(self, heap: int) -> None:
        """Raise an error if the list of a heap, at this place of the file, leads back to itself."""
        if heap in self._ended:
            return
        header = self._bytes(heap + len(_HEAP), 2 * self._length + self._offset)
        size, free = (_number(header, i * self._length, self._length) for i in range(2))
        segment = self._base + _number(header, 2 * self._length, self._offset)
        seen: set[int] = set()
        while free != _END and free < size and segment + free < self._file.size:
            if free in seen:
                raise SourceError(
                    f"{self._file.path} is damaged: a list of free places leads back to itself"
                )
            seen.add(free)
            free = _number(self._bytes(segment + free, self._length), 0, self._length)
        self._ended.add(heap)

    def _bytes(self, place: int, size: int) -> bytes:
        """Return bytes of the file, or fewer at its end."""
        return bytes(self._file.read(place, size))


def _widths(start: bytes) -> tuple[int, int]:
    """Return how many bytes an offset and a length take, by the beginning of the file."""
    version = start[8] if len(start) > 8 else 0
    pair = start[13:15] if version < 2 else start[9:11]
    return (pair[0], pair[1]) if len(pair) == 2 else (8, 8)


def _places(data: bytes, part: bytes) -> Iterator[int]:
    """Yield the positions of a part of some bytes."""
    place = data.find(part)
    while place >= 0:
        yield place
        place = data.find(part, place + 1)


def _number(data: bytes, start: int, width: int) -> int:
    """Return a number that is stored in so many bytes, the least significant first."""
    return int.from_bytes(data[start : start + width], "little")
