"""Short pieces of a remote file that are read again, to notice that the file was replaced.

They serve for servers that state neither an ETag nor a date: a file that is replaced by one of the
same size can be told from its bytes only.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

PIECE = 2**10
"""Bytes in a piece."""
_FIXED = 8
"""Pieces at fixed places, which are read when the file is opened."""
_KEPT = 32
"""Pieces of later reads that are kept at most."""
_BEGINNING = 2**20
"""Bytes at the beginning that are compared whole, as far as they were read: most headers fit."""


def fixed_places(begin: int, size: int) -> list[int]:
    """Return where the pieces lie that are read on opening: evenly spread, the last at the end.

    What lies before ``begin`` is known already.

    >>> fixed_places(0, 9216)
    [1024, 2048, 3072, 4096, 5120, 6144, 7168, 8192]
    >>> fixed_places(9000, 9216), fixed_places(9216, 9216)
    ([8192], [])
    """
    span = max(0, size - PIECE - begin)
    places = {size - PIECE - span * i // _FIXED for i in range(_FIXED)}
    return sorted(places) if begin < size else []


class Samples:
    """What is known of a file: a hash of its beginning, and pieces by their places."""

    def __init__(self, start: bytes, fixed: Mapping[int, bytes]) -> None:
        """Take the first bytes of the file, and the pieces at its fixed places."""
        self._first = start[:PIECE]
        self._beginning = [(len(start), _hash(start))]
        """Where each part of the beginning ends, and its hash."""
        self.pieces = dict(fixed)
        """Pieces at fixed places and random ones."""
        self.identity = f"sampled:{_hash(b''.join(fixed[at] for at in sorted(fixed)))}"
        """A hash of the pieces at fixed places, which the same content always has."""
        self._kept: list[int] = []
        """The places of the random pieces."""
        self._seen = self._turn = 0
        # With a fixed seed, the same reads keep the same pieces.
        self._random = random.Random(0)

    @property
    def beginning(self) -> int:
        """How many bytes at the beginning are known by their hashes."""
        return self._beginning[-1][0]

    def keep(self, start: int, data: memoryview) -> None:
        """Keep a random piece of what was read, and a hash of it at the beginning of the file."""
        known = self.beginning
        if start <= known < (end := min(start + len(data), _BEGINNING)):
            self._beginning.append((end, _hash(data[known - start : end - start])))
        skip = self._random.randrange(max(1, len(data) - PIECE + 1))
        self._seen += 1
        # Reservoir sampling: every read is equally likely to be kept (algorithm R; Vitter 1985).
        if len(self._kept) == _KEPT:
            if (place := self._random.randrange(self._seen)) >= _KEPT:
                return
            self.pieces.pop(self._kept.pop(place), None)
        self._kept.append(start + skip)
        self.pieces[start + skip] = bytes(data[skip : skip + PIECE])

    def next(self) -> tuple[int, bytes]:
        """Return the pieces in turn, one at each call."""
        pieces = [(0, self._first), *self.pieces.items()]
        self._turn += 1
        return pieces[self._turn % len(pieces)]

    def begins(self, data: memoryview) -> bool:
        """Whether these are the bytes at the beginning that were read before."""
        start = 0
        for end, known in self._beginning:
            if end <= len(data) and _hash(data[start:end]) != known:
                return False
            start = end
        return True


def _hash(data: bytes | memoryview) -> str:
    """Return a hash of some bytes."""
    return hashlib.sha256(data).hexdigest()
