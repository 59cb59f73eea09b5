"""What the readers of files need of a path, so that a remote path serves them like a local one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath
from typing import Any, Protocol


class FilePath(Protocol):
    """A path: ``pathlib.Path``, or a ``RemotePath`` with the same methods."""

    @property
    def name(self) -> str:
        """The last component."""

    @property
    def suffix(self) -> str:
        """The ending of the name, with its dot."""

    @property
    def parent(self) -> FilePath:
        """The folder that the path lies in."""

    def __truediv__(self, name: str | PurePath, /) -> FilePath:
        """Return the path of a name inside of this folder."""

    def __lt__(self, other: Any, /) -> bool:
        """Order paths by their text."""

    def with_name(self, name: str, /) -> FilePath:
        """Return the path of another name in the same folder."""

    def resolve(self) -> FilePath:
        """Return the path without links."""

    def exists(self) -> bool:
        """Whether there is a file or a folder."""

    def is_file(self) -> bool:
        """Whether there is a file."""

    def is_dir(self) -> bool:
        """Whether there is a folder."""

    def iterdir(self) -> Iterable[FilePath]:
        """Return the paths in this folder."""

    def glob(self, pattern: str, /) -> Iterable[FilePath]:
        """Return the paths in this folder whose names match a pattern."""

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """Read the whole file as text."""
