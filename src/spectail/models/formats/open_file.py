"""Model files that are opened once, read by position, and refused after they have changed.

Local files are never mapped into memory. If another program truncates a mapped file, the process
ends with SIGBUS; and mapped pages count as the process's memory.
"""

from __future__ import annotations

import io
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectail.errors import SourceChangedError, SourceError
from spectail.models.formats.file_path import FilePath

_CLOCK_TICK = 20_000_000
"""Nanoseconds after which a write is sure to give a file another time stamp (kernels use ticks of
up to 10 ms)."""
_MOST_AT_ONCE = 2**30
"""Bytes read per call; Linux reads at most 2 GiB."""
_LONGEST_TEXT = 2**28
"""Bytes that a text may have; the index of a million tensors has about half of it."""


@dataclass(frozen=True)
class Stamp:
    """What changes when a file is written: its size and dates. The inode tells files apart."""

    size: int
    modified: int
    inode: int
    changed: int
    """When the content or anything else about the file has changed. Programs can set ``modified``
    back after a write, but not this date."""
    links: int

    @classmethod
    def of(cls, file: int | Path) -> Stamp:
        """Return the stamp of an open file, or of the file at a path."""
        stat = os.stat(file)
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns, stat.st_nlink)

    def agrees(self, other: Stamp) -> bool:
        """Whether two stamps of one file show that it has not been written in between."""
        same = all(
            getattr(self, name) == getattr(other, name) for name in ("size", "modified", "inode")
        )
        # Deleting a file, or renaming another one over it, takes a link away. That changes the
        # date too, but not the content. A link more may hide a write whose date was set back.
        return same and (self.changed == other.changed or other.links < self.links)


class ReadableFile(ABC):
    """Anything that is read by position: a local file, a remote one, or bytes in memory."""

    path: FilePath
    """Names the file in messages; files beside it are found from here."""
    note: str = ""
    """A remark for the user on how the file is read."""
    remote: bool = False
    """Whether its bytes come over the network."""

    @property
    def name(self) -> str:
        """Name of the file without its folder."""
        return self.path.name

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of bytes."""

    @abstractmethod
    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes from ``offset`` on.

        Raises:
            SourceChangedError: The file has been written since it was opened.
            SourceError: The file ends before ``target`` is full, or it cannot be read.

        """

    def read(self, offset: int, size: int) -> bytearray:
        """Read ``size`` bytes from ``offset`` on, or fewer at the end of the file."""
        data = bytearray(max(0, min(size, self.size - offset)))
        self.read_into(offset, memoryview(data))
        return data

    def read_text_bytes(self) -> bytes:
        """Read the whole file, which should be a text such as ``config.json``.

        Raises:
            SourceError: It is longer than any such text. A server may claim any size.

        """
        if self.size > _LONGEST_TEXT:
            raise SourceError(
                f"{self.path} has {self.size} bytes, too many for a text; download it again"
            )
        return bytes(self.read(0, self.size))

    def stream(self, start: int = 0, size: int | None = None) -> io.BufferedReader:
        """Return a part of the file as a separate stream, for libraries that read streams."""
        return io.BufferedReader(_Stream(self, start, self.size - start if size is None else size))

    def check_path(self) -> None:
        """Raise ``SourceChangedError`` if the path holds another content than was opened."""

    def prefetch(self, offsets: Iterable[int]) -> None:
        """Announce short reads at these places; a remote file fetches them at once."""


class OpenFile(ReadableFile):
    """A local file opened for reading by position; it is closed when nobody refers to it.

    The content stays readable after the path is deleted or another file is renamed over it. An
    unpickled copy opens the path again, and refuses a file whose stamp differs from the one at
    opening.
    """

    def __init__(self, path: Path, stamp: Stamp | None = None) -> None:
        """Open a file; with ``stamp``, only if the file still has that stamp."""
        self.path: Path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            # An unpickled copy opens the path again. A file that is gone then counts as changed.
            if stamp is not None:
                raise self._changed() from None
            raise SourceError(f"{path} cannot be read: {error.strerror or error}") from None
        self._lock = threading.Lock()
        # Many tensors share one file, and nobody knows which
        # is read last. So the garbage collector closes it.
        weakref.finalize(self, os.close, self._descriptor)
        self.stamp = stamp or self._settled_stamp()
        self.check()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and the stamp."""
        return OpenFile, (self.path, self.stamp)

    @property
    def size(self) -> int:
        """Number of bytes at opening."""
        return self.stamp.size

    def check(self) -> None:
        """Raise ``SourceChangedError`` if the file has been written since it was opened."""
        if not self.stamp.agrees(Stamp.of(self._descriptor)):
            raise self._changed()

    def check_path(self) -> None:
        """Raise ``SourceChangedError`` if the file has been written, or another one has its path.

        A file that was deleted is no error: what was opened could be read to its end.
        """
        self.check()
        try:
            now = Stamp.of(self.path)
        except OSError:
            return
        if not self.stamp.agrees(now):
            raise self._changed()

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes from ``offset`` on."""
        if offset < 0:
            raise SourceError(f"{self.path} names a place before its beginning: it is damaged")
        done = 0
        while done < len(target):
            try:
                count = self._read_some(offset + done, target[done : done + _MOST_AT_ONCE])
            except OSError as error:
                raise SourceError(
                    f"{self.path} cannot be read: {error.strerror or error}"
                ) from None
            if count == 0:
                self.check()
                raise SourceError(
                    f"{self.path} ends before byte {offset + len(target)}: it is truncated"
                )
            done += count
        # After the read, not before it: a write in between is noticed too.
        self.check()

    def _read_some(self, offset: int, target: memoryview) -> int:
        """Read at one position, without moving a shared one where the system has ``preadv``."""
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [target], offset)
        # Two threads must not move the position between the seek and the read.
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            data = os.read(self._descriptor, len(target))
        target[: len(data)] = data
        return len(data)

    def _settled_stamp(self) -> Stamp:
        """Return the stamp, after a short wait if the file was just written.

        A second write within the same clock tick would leave the stamp as it is.
        """
        stamp = Stamp.of(self._descriptor)
        age = time.time_ns() - stamp.modified
        if abs(age) < _CLOCK_TICK:
            time.sleep(_CLOCK_TICK / 1e9)
            stamp = Stamp.of(self._descriptor)
        return stamp

    def _changed(self) -> SourceChangedError:
        """Return the error for a file that has changed."""
        return SourceChangedError(f"{self.path} has changed since it was opened: open it again")


class MemoryFile(ReadableFile):
    """Bytes in memory that are read like an open file: a member of an archive, or a nested file."""

    def __init__(self, path: FilePath, content: bytes | bytearray) -> None:
        """Take the bytes, and the path to name in messages."""
        self.path, self._content = path, content

    @property
    def size(self) -> int:
        """Number of bytes."""
        return len(self._content)

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes from ``offset`` on."""
        piece = self._content[offset : offset + len(target)]
        if offset < 0 or len(piece) < len(target):
            raise SourceError(
                f"{self.path} ends before byte {offset + len(target)}: it is truncated"
            )
        target[:] = piece


class _Stream(io.RawIOBase):
    """A part of an open file as a raw stream."""

    def __init__(self, file: ReadableFile, start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("negative position")
        self._position = base + offset
        return self._position

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        count = max(0, min(len(view), self._size - self._position))
        self._file.read_into(self._start + self._position, view[:count])
        self._position += count
        return count
