"""Locks on files that the operating system releases when their process ends, however it ends.

Linux and macOS lock with ``flock``, Windows with ``msvcrt.locking``. A file system without locks
(some network mounts) grants every lock, so nothing is protected there and nothing fails either.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import errno
    import fcntl

_FAR = 2**30
"""Windows forbids others to read locked bytes, so a byte far behind the content is locked."""


def open_locked(path: Path) -> int | None:
    """Open a file for reading and writing, make it if it is missing, and lock it.

    Returns its descriptor, or None if another process, or this one, holds the lock. Closing the
    descriptor releases it.
    """
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags, 0o666)
        if not _lock(descriptor):
            os.close(descriptor)
            return None
        # The holder may have deleted the file after it was opened here: a lock on a file without a
        # name excludes nobody.
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


if sys.platform == "win32":

    def _lock(descriptor: int) -> bool:
        """Lock an open file; return whether it worked."""
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:

    def _lock(descriptor: int) -> bool:
        """Lock an open file; return whether it worked."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Any other error means that the file system has no locks.
            return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        return True
