"""The description of a file format: how its files are recognised and which function reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spectail.models.formats.file_path import FilePath
from spectail.models.formats.open_file import ReadableFile
from spectail.models.lazy_tensor import LazyTensor


@dataclass(frozen=True)
class Contents:
    """The contents of the files of one model."""

    tensors: Sequence[LazyTensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    """What the files themselves state about the model, with the keys of transformers'
    ``config.json``."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on how the files were read, one sentence each."""
    more_files: tuple[ReadableFile, ...] = ()
    """Further files that hold values; they enter the fingerprint."""


def only_itself(path: FilePath) -> list[FilePath]:
    """Return the files of a model that is one file."""
    return [path]


def nothing_tells(start: bytes, size: int) -> bool:
    """Return False: the content of a file never tells that it is of this format."""
    return False


@dataclass(frozen=True)
class Format:
    """One file format.

    To add a format, write a module with a ``read`` function and put its ``Format`` into
    ``table.FORMATS``.
    """

    name: str
    """The format's name in messages, with its article: ``a safetensors file``."""
    suffixes: tuple[str, ...]
    """Endings of the format's files, in lower case and with the dot."""
    read: Callable[[Sequence[ReadableFile]], Contents]
    """Reads all files of one model. It lists the tensors and should leave their values to be read
    later."""
    looks_like: Callable[[bytes, int], bool] = nothing_tells
    """Whether the first 512 bytes and the size of a file show that it is of this format."""
    folder: tuple[str, ...] | None = None
    """Patterns of its files in a model folder, the most usual first; all files with its endings by
    default."""
    all_parts: Callable[[FilePath], list[FilePath]] = only_itself
    """Returns all files of a split model from one of them, for formats whose file names say so."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the format's files in a model folder."""
        return (
            tuple(f"*{suffix}" for suffix in self.suffixes) if self.folder is None else self.folder
        )
