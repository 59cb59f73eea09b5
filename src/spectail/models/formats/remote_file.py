"""A file elsewhere that is read by ranges: only the bytes that are asked for are fetched."""

from __future__ import annotations

import io
import shutil
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from spectail.errors import SourceChangedError, SourceError, SourceUnreachableError
from spectail.models.formats.open_file import ReadableFile
from spectail.models.formats.samples import PIECE, Samples, fixed_places
from spectail.models.formats.store_errors import RETRIES, PastEndError, RangesIgnoredError
from spectail.models.formats.stores import IN_FLIGHT, Piece, Place, RemoteStamp, pauses

_FIRST = 2**16
"""Bytes that are read on opening: the header of most safetensors files fits."""
_BLOCK = 2**14
"""Short reads are answered from blocks of this size, of which some are kept."""
_KEPT_BLOCKS = 2048
_MOST_AHEAD = 2**20
"""Most bytes that are read ahead, when short reads follow one another."""
_SHORT = 2**16
"""Reads of fewer bytes than this count as short."""
_PART = 2**23
"""Longer reads are split into parts of so many bytes."""


class RemoteFile(ReadableFile):
    """A file elsewhere, opened by reading its first bytes, and refused after it has changed.

    An unpickled copy opens the path again, and refuses a file whose stamp differs from the one at
    opening. If the server states neither an ETag nor a date, pieces of the content stand in: one is
    read again after every read, and all of them at the end.
    """

    remote = True

    def __init__(
        self, path: Place, stamp: RemoteStamp | None = None, samples: Samples | None = None
    ) -> None:
        """Open a file; with ``stamp`` and ``samples``, only if the file still has them.

        Raises:
            FileNotFoundError: There is no such file.
            SourceError: It cannot be read, or it has changed.

        """
        self.path: Place = path
        self.start = b""
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next_miss, self._ahead = -1, _BLOCK
        self._lock = threading.Lock()
        self._copy: io.BufferedRandom | None = None
        self._store = path.store
        self._samples: Samples | None = None
        first = self._beginning()
        if isinstance(first, RemoteStamp):
            self.stamp = first
            self.start = bytes(self.read(0, _FIRST))
        else:
            self.stamp = first.stamp
            # The first bytes stay, so that opening asks for nothing twice.
            self.start = bytes(first.data)
            expected = min(_FIRST, first.stamp.size)
            if len(self.start) != expected:
                self.start = bytes(self._checked(0, expected))
        if stamp is not None and stamp != self.stamp:
            raise self._changed()
        if not self.stamp.tag:
            places = fixed_places(len(self.start), self.size)
            self._samples = Samples(self.start, self._pieces([(at, PIECE) for at in places]))
        if samples is not None:
            self._compare(samples)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path, the stamp and what replaces a stamp."""
        return RemoteFile, (self.path, self.stamp, self._samples)

    @property
    def size(self) -> int:
        """Number of bytes at opening."""
        return self.stamp.size

    @property
    def identity(self) -> str:
        """What identifies the content: a hash that the place states, the ETag or the date.

        Without any of them it is a hash of pieces of the content.
        """
        known = self._store.identity(self.path.key) or self.stamp.tag
        return known or (self._samples.identity if self._samples else "")

    def check_path(self) -> None:
        """Raise ``SourceChangedError`` if the path holds another content than was opened.

        A file that was copied whole is not asked for again: all its values are of one content.
        """
        if self._copy is not None or not self.size:
            return
        if self._samples:
            self._compare(self._samples)
        else:
            self._whole(0, 1)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes from ``offset`` on."""
        end = offset + len(target)
        if offset < 0:
            raise SourceError(f"{self.path} names a place before its beginning: it is damaged")
        if end > self.size:
            raise SourceError(f"{self.path} ends before byte {end}: it is truncated")
        if self._copy is not None:
            with self._lock:
                self._copy.seek(offset)
                self._copy.readinto(target)
        elif end <= len(self.start):
            target[:] = self.start[offset:end]
        elif len(target) < _SHORT:
            self._read_blocks(offset, target)
        else:
            self._read_parts(offset, target)

    def prefetch(self, offsets: Iterable[int]) -> None:
        """Fetch the blocks at these places, some at the same time."""
        if self._copy is not None:
            return
        wanted = {offset // _BLOCK for offset in offsets if len(self.start) <= offset < self.size}
        missing = sorted(number for number in wanted if number not in self._blocks)
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(self._load, missing[:_KEPT_BLOCKS]))

    def _read_parts(self, offset: int, target: memoryview) -> None:
        """Read many bytes, in several requests at the same time."""

        def fill(start: int) -> None:
            size = min(_PART, len(target) - start)
            target[start : start + size] = self._checked(offset + start, size)

        starts = range(0, len(target), _PART)
        if len(starts) == 1:
            fill(0)
            return
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(fill, starts))

    def _read_blocks(self, offset: int, target: memoryview) -> None:
        """Read few bytes from the kept blocks; missing ones are fetched."""
        done = 0
        while done < len(target):
            number, skip = divmod(offset + done, _BLOCK)
            piece = self._block(number)[skip : skip + len(target) - done]
            target[done : done + len(piece)] = piece
            done += len(piece)

    def _block(self, number: int) -> bytes:
        """Return a block, and read ahead if the missing blocks follow one another."""
        with self._lock:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                return self._blocks[number]
            follows = number == self._next_miss
            self._ahead = min(self._ahead * 2, _MOST_AHEAD) if follows else _BLOCK
            count = self._ahead // _BLOCK
            self._next_miss = number + count
        return self._load(number, count)

    def _load(self, number: int, count: int = 1) -> bytes:
        """Fetch some blocks with one request; return the first."""
        start = number * _BLOCK
        data = bytes(self._checked(start, min(count * _BLOCK, self.size - start)))
        with self._lock:
            for place in range(0, len(data), _BLOCK):
                self._blocks[number + place // _BLOCK] = data[place : place + _BLOCK]
            while len(self._blocks) > _KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        return data[:_BLOCK]

    def _checked(self, start: int, size: int) -> memoryview:
        """Fetch bytes of the file that was opened, all of them."""
        data = self._whole(start, size)
        if self._samples:
            # Only what was read before can show that this was read from another file.
            with self._lock:
                place, kept = self._samples.next()
                self._samples.keep(start, data)
            if self._whole(place, len(kept)) != kept:
                raise self._changed()
        return data

    def _compare(self, samples: Samples) -> None:
        """Raise SourceChangedError unless the file still holds these pieces."""
        with self._lock:
            kept = dict(samples.pieces)
        found = self._pieces([(start, len(piece)) for start, piece in kept.items()])
        beginning = memoryview(self._pieces([(0, samples.beginning)])[0])
        if found != kept or not samples.begins(beginning):
            raise self._changed()

    def _pieces(self, places: Sequence[tuple[int, int]]) -> dict[int, bytes]:
        """Read pieces of so many bytes at these places, some at the same time."""

        def piece(place: tuple[int, int]) -> tuple[int, bytes]:
            if self._copy is not None:
                return place[0], bytes(self.read(*place))
            return place[0], bytes(self._whole(*place))

        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            return dict(pool.map(piece, places))

    def _whole(self, start: int, size: int) -> memoryview:
        """Fetch bytes of the file, all of them, if its stamp is that of the file opened.

        An answer of another length is asked for again, and so is the whole file in place of a part:
        servers behind a cache send it now and then.
        """
        rest = pauses()
        while True:
            try:
                data = self._fetch(start, size)
            except RangesIgnoredError:
                sent = "a whole file or page"
            else:
                if len(data) == size:
                    return data
                sent = f"{len(data)}" if len(data) < size else f"more than {size}"
            pause = next(rest, None)
            if pause is None:
                raise SourceUnreachableError(
                    f"{self.path} cannot be read: the server sends {sent} in place of {size} bytes"
                    f", also after {RETRIES} more tries; run the same command again"
                )
            time.sleep(pause)

    def _fetch(self, start: int, size: int) -> memoryview:
        """Fetch a range; a file that is gone or has another stamp has changed.

        Every other refusal ends the run, because a server that gave a part of the file and denies
        the rest (an expired signature, a used-up quota) would deny all layers that are left.
        """
        try:
            piece = self._store.get(self.path.key, start, start + size)
        except (FileNotFoundError, PastEndError):
            raise self._changed() from None
        except SourceUnreachableError:
            raise
        except SourceError as error:
            raise SourceUnreachableError(str(error)) from None
        if piece.stamp != self.stamp:
            raise self._changed()
        return piece.data

    def _beginning(self) -> Piece | RemoteStamp:
        """Read the first bytes; the stamp alone after the whole file has been copied."""
        key = self.path.key
        with suppress(RangesIgnoredError):
            return self._store.get(key, 0, _FIRST)
        stamp, pieces = self._store.whole(key)
        if stamp.size > _FIRST:
            # It may have been an exception, and the file may be of many gigabytes.
            time.sleep(next(pauses()))
            with suppress(RangesIgnoredError):
                return self._store.get(key, 0, _FIRST)
        self._download(stamp, pieces)
        return stamp

    def _download(self, stamp: RemoteStamp, pieces: Iterable[bytes]) -> None:
        """Copy the whole file to a temporary place, once, for a server that ignores ranges."""
        place = tempfile.gettempdir()
        free = shutil.disk_usage(place).free
        if stamp.size > free:
            raise SourceError(
                f"{self.path} cannot be read: its server sends whole files only, and {place} has "
                f"{free / 1e9:.1f} GB free of the {stamp.size / 1e9:.1f} that it takes; "
                "set TMPDIR to a larger place"
            )
        # The file has no name and vanishes with the process.
        self._copy = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open as long as this object
        weakref.finalize(self, self._copy.close)
        done = 0
        for piece in pieces:
            try:
                done += self._copy.write(piece)
            except OSError as error:
                raise SourceError(
                    f"{self.path} cannot be copied to {place}: {error.strerror or error}"
                ) from None
        self._copy.flush()
        if done != stamp.size:
            raise SourceUnreachableError(
                f"{self.path} cannot be read: the server sent {done} of {stamp.size} bytes; "
                "run the same command again"
            )
        if done > _FIRST:
            self.note = (
                f"the server of {self.path} ignores ranges: "
                f"the whole file of {done / 1e6:.1f} MB was downloaded to a temporary place"
            )

    def _changed(self) -> SourceChangedError:
        """Return the error for a file that has changed."""
        return SourceChangedError(f"{self.path} has changed since it was opened: open it again")
