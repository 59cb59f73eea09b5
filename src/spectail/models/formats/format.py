"""What a file format is to the rest: how its files are recognised, and one function that reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spectail.models.formats.open_file import OpenFile
from spectail.models.lazy_tensor import LazyTensor


@dataclass(frozen=True)
class Contents:
    """What the files of one model hold."""

    tensors: Sequence[LazyTensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    """What the files themselves say about the model, in the words of transformers'
    ``config.json``."""
    notes: tuple[str, ...] = ()
    """Things that the user should know about how the files were read, one sentence each."""
    more_files: tuple[OpenFile, ...] = ()
    """Files beside the given ones that hold values too; they enter the fingerprint."""


def only_itself(path: Path) -> list[Path]:
    """List the files of a model that lies in one file."""
    return [path]


def nothing_tells(start: bytes, size: int) -> bool:
    """Say that the content of a file never tells its format."""
    return False


@dataclass(frozen=True)
class Format:
    """One file format: to add one, write a module with ``read`` and put a ``Format`` into ``table.FORMATS``."""

    name: str
    """What the format is called in messages, with its article: ``a safetensors file``."""
    suffixes: tuple[str, ...]
    """Endings of the format's files, in lower case with their dot."""
    read: Callable[[Sequence[OpenFile]], Contents]
    """Reads all files of one model. It lists tensors, whose values should be read when they are
    asked for."""
    looks_like: Callable[[bytes, int], bool] = nothing_tells
    """Whether the first 512 bytes and the size of a file say that it is of this format."""
    folder: tuple[str, ...] | None = None
    """Patterns of its files in a model folder, the most usual first; all files with its endings
    unless given."""
    all_parts: Callable[[Path], list[Path]] = only_itself
    """From one file of a split model to all of them, for formats whose names say so."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the format's files in a model folder."""
        return (
            tuple(f"*{suffix}" for suffix in self.suffixes) if self.folder is None else self.folder
        )
