"""The path of a file or folder elsewhere, with the methods of a local one, and what opens both."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import total_ordering
from pathlib import Path, PurePath, PurePosixPath

from spectail.errors import SourceError
from spectail.models.formats.file_path import FilePath
from spectail.models.formats.open_file import OpenFile, ReadableFile
from spectail.models.formats.remote_file import RemoteFile
from spectail.models.formats.store_errors import AccessDeniedError
from spectail.models.formats.stores import IN_FLIGHT, Store


@total_ordering
class RemotePath:
    """A key in a store; it behaves like a ``pathlib.Path`` and shows its address without secrets.

    Files stay opened in the store, so that asking for the same file twice costs one request.
    """

    def __init__(self, store: Store, key: str) -> None:
        """Take the store, and the key without a slash at either end."""
        self.store, self.key = store, key

    def __str__(self) -> str:
        return self.store.address(self.key)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RemotePath):
            return NotImplemented
        return (self.store, self.key) == (other.store, other.key)

    def __lt__(self, other: RemotePath) -> bool:
        return self.key < other.key

    def __hash__(self) -> int:
        return hash((self.store, self.key))

    @property
    def name(self) -> str:
        """The last component."""
        return PurePosixPath(self.key or self.store.shown).name

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """The folder that the path lies in; the store itself for its top."""
        return RemotePath(self.store, self.key.rpartition("/")[0])

    def __truediv__(self, name: str | PurePath, /) -> RemotePath:
        """Return the path of a name inside of this folder."""
        # Normalising from the root keeps ``..`` inside of the store.
        joined = posixpath.normpath(f"/{self.key}/{name}")
        return RemotePath(self.store, joined.strip("/"))

    def with_name(self, name: str, /) -> RemotePath:
        """Return the path of another name in the same folder."""
        return self.parent / name

    def resolve(self) -> RemotePath:
        """Return the path itself: a store has no links."""
        return self

    def exists(self) -> bool:
        """Whether there is a file or a folder.

        Raises:
            SourceError: Access is denied, or the store cannot be reached.

        """
        return self.store.holds_folder(self) or self.store.holds_file(self)

    def is_file(self) -> bool:
        """Whether there is a file that may be read."""
        # Amazon denies access to a file that is missing, unless the bucket may be listed. So do
        # servers whose addresses are signed for one file.
        with suppress(AccessDeniedError):
            return self.store.holds_file(self)
        return False

    def is_dir(self) -> bool:
        """Whether there is a folder that may be listed."""
        with suppress(AccessDeniedError):
            return self.store.holds_folder(self)
        return False

    def iterdir(self) -> Iterator[RemotePath]:
        """Return the paths in this folder."""
        return (self / name for name in sorted(self.store.names(self.key)))

    def glob(self, pattern: str, /) -> Iterator[RemotePath]:
        """Return the paths in this folder whose names match a pattern."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def open(self) -> ReadableFile:
        """Open the file, once.

        Raises:
            FileNotFoundError: There is no such file.
            SourceError: It cannot be read.

        """
        files = self.store.files
        if self.key not in files:
            files[self.key] = RemoteFile(self)
        return files[self.key]

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Read the whole file as text.

        Raises:
            FileNotFoundError: There is no such file.
            SourceError: It cannot be read.

        """
        if not self.is_file():
            raise FileNotFoundError(f"there is no {self}")
        return self.open().read_text_bytes().decode(encoding or "utf-8", errors or "strict")


def open_file(path: FilePath) -> ReadableFile:
    """Open a local or remote file for reading by position.

    Raises:
        SourceError: It is missing or cannot be read.

    """
    if isinstance(path, RemotePath):
        try:
            return path.open()
        except FileNotFoundError:
            raise SourceError(f"there is no file {path}") from None
    return OpenFile(Path(str(path)))


def open_at_once(paths: Iterable[FilePath]) -> None:
    """Open remote files, some at the same time, so that later calls of ``open_file`` are quick."""

    def opened(path: RemotePath) -> None:
        # What is missing or denied is reported where the file is needed.
        with suppress(FileNotFoundError, AccessDeniedError):
            path.open()

    remote = [path for path in paths if isinstance(path, RemotePath)]
    if remote:
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(opened, remote))


def refuse_denied(path: FilePath) -> None:
    """Raise AccessDeniedError for a remote file that may not be read; ``is_file`` says "missing".

    Nothing happens for a file that is missing, and for a local one.
    """
    if isinstance(path, RemotePath):
        with suppress(FileNotFoundError):
            path.open()
