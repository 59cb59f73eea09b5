"""A file of a model, opened once: all reads go through one handle and are refused after the file has changed.

Files are read by position and never mapped into memory: a mapped file that another program
truncates ends the process with SIGBUS, and mapped pages count as the process's memory.
"""

from __future__ import annotations

import io
import os
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from spectail.errors import SourceChangedError, SourceError

_CLOCK_TICK = 20_000_000
"""Nanoseconds after which a write is sure to give a file another time stamp (kernels use ticks of
up to 10 ms)."""
_MOST_AT_ONCE = 2**30
"""Linux reads at most 2 GiB per call."""


@dataclass(frozen=True)
class Stamp:
    """What changes when a file is written: its size and time of modification; the inode tells files apart."""

    size: int
    modified: int
    inode: int

    @classmethod
    def of(cls, descriptor: int) -> Stamp:
        """Take the stamp of an open file."""
        stat = os.fstat(descriptor)
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino)


class OpenFile:
    """A file opened for reading by position, with the stamp it had at opening; closed when nobody refers to it.

    The content stays readable after the path is deleted or another file is renamed over it. A copy
    that is unpickled opens the path again and refuses a file whose stamp differs.
    """

    def __init__(self, path: Path, stamp: Stamp | None = None) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            if stamp is not None:
                raise self._changed() from None
            raise SourceError(f"{path} cannot be read: {error.strerror or error}") from None
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self._descriptor)
        self.stamp = stamp or self._settled_stamp()
        self.check()

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFile, (self.path, self.stamp)

    @property
    def name(self) -> str:
        """Name of the file without its folder."""
        return self.path.name

    @property
    def size(self) -> int:
        """Number of bytes at opening."""
        return self.stamp.size

    def check(self) -> None:
        """Raise SourceChangedError if the file has been written since it was opened."""
        if Stamp.of(self._descriptor) != self.stamp:
            raise self._changed()

    def read(self, offset: int, size: int) -> bytearray:
        """Read ``size`` bytes from ``offset`` on, fewer at the end of the file."""
        data = bytearray(max(0, min(size, self.size - offset)))
        self.read_into(offset, memoryview(data))
        return data

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes from ``offset`` on.

        Raises:
            SourceChangedError: the file has been written since it was opened.
            SourceError: the file ends before ``target`` is full.

        """
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
        self.check()

    def stream(self, start: int = 0, size: int | None = None) -> io.BufferedReader:
        """Return a part of the file as a stream of its own, for libraries that read streams."""
        return io.BufferedReader(_Stream(self, start, self.size - start if size is None else size))

    def _read_some(self, offset: int, target: memoryview) -> int:
        """Read at one position, which on systems with ``preadv`` moves no shared one."""
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [target], offset)
        with self._lock:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            data = os.read(self._descriptor, len(target))
        target[: len(data)] = data
        return len(data)

    def _settled_stamp(self) -> Stamp:
        """Take the stamp, after a moment where the file was written so lately that a new write could share it."""
        stamp = Stamp.of(self._descriptor)
        age = time.time_ns() - stamp.modified
        if abs(age) < _CLOCK_TICK:
            time.sleep(_CLOCK_TICK / 1e9)
            stamp = Stamp.of(self._descriptor)
        return stamp

    def _changed(self) -> SourceChangedError:
        return SourceChangedError(f"{self.path} has changed since it was opened: open it again")


class MemoryFile:
    """Bytes in memory that are read like an open file: a member of an archive, or a file within a file."""

    def __init__(self, path: Path, content: bytes | bytearray) -> None:
        self.path, self._content = path, content

    @property
    def size(self) -> int:
        """Number of bytes."""
        return len(self._content)

    def read(self, offset: int, size: int) -> bytearray:
        """Copy ``size`` bytes from ``offset`` on, fewer at the end."""
        return bytearray(self._content[offset : offset + size])

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes from ``offset`` on."""
        piece = self._content[offset : offset + len(target)]
        if offset < 0 or len(piece) < len(target):
            raise SourceError(
                f"{self.path} ends before byte {offset + len(target)}: it is truncated"
            )
        target[:] = piece

    def stream(self, start: int = 0, size: int | None = None) -> io.BufferedReader:
        """Return a part as a stream of its own."""
        return io.BufferedReader(_Stream(self, start, self.size - start if size is None else size))


ReadableFile: TypeAlias = OpenFile | MemoryFile


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
