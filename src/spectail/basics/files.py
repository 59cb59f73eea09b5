"""Write files and folders completely or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def all_or_nothing(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path beside each path, for the block to write a file or folder there.

    When the block ends, they get their final names in the given order: a last one that exists
    shows that the others are complete. When it raises, everything that it wrote is removed.
    """
    parts = tuple(path.with_name(f".{path.name}.part") for path in paths)
    for part in parts:
        part.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)  # a run that was killed may have left it
    try:
        yield parts
        for part, path in zip(parts, paths, strict=True):
            # os.replace is atomic, so a reader sees either the old content or the new one.
            os.replace(part, path)
    finally:
        for part in parts:
            _remove(part)


def write_text(path: Path, text: str) -> Path:
    """Write a text file, and the folders it lies in, completely or not at all."""
    with all_or_nothing(path) as (part,):
        part.write_text(text, encoding="utf-8")
    return path


def _remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
