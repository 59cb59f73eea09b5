"""Write files and folders completely or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from spectail.basics.addresses import is_address, unfolded, without_secrets
from spectail.basics.locks import open_locked
from spectail.errors import RunError, SpectailError

_PREFIX, _SUFFIX = ".spectail-", ".part"
"""Begin and end of the names of temporary folders."""
_HEAD, _TAIL = 2**14, 2**18
"""Bytes at the beginning and at the end of a file that are searched for a mark. The names of the
columns of a Parquet file are at its end."""
_LOCK = "lock"
"""The file in a temporary folder that its process keeps locked."""


def local_path(text: str | os.PathLike[str]) -> Path:
    """Return the path that a text names, with ``~`` and ``~user`` replaced as shells do.

    A user that there is not stays as written, so that the path does not exist.
    """
    return Path(os.path.expanduser(text))


@contextmanager
def all_or_nothing(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield a temporary path for each path, for the block to write a file or folder there.

    When the block ends, they get their final names in the given order: a last one that exists
    shows that the others are complete. When it raises, everything that it wrote is removed. What a
    killed process has left is removed when the next one writes into the same folder.
    """
    for path in paths:
        refuse_address(path)
    targets = [_written(path) for path in paths]
    new = [folder for target in targets for folder in _missing_folders(target.parent)]
    try:
        with ExitStack() as stack:
            rooms = {
                folder: stack.enter_context(_temporary_folder(folder))
                for folder in dict.fromkeys(target.parent for target in targets)
            }
            parts = tuple(rooms[target.parent] / target.name for target in targets)
            yield parts
            for part in parts:
                _flush(part)
            for part, target in zip(parts, targets, strict=True):
                # os.replace is atomic, so a reader sees either the old content or the new one.
                os.replace(part, target)
    except BaseException as error:
        _name_file(error, targets[0])
        for folder in reversed(new):
            with suppress(OSError):  # another process may have written there
                folder.rmdir()
        raise


def write_text(path: Path, text: str) -> Path:
    """Write a text file, and the folders it lies in, completely or not at all."""
    with all_or_nothing(path) as (part,):
        part.write_text(text, encoding="utf-8", newline="\n")
    return path


def content_of(path: str | Path) -> bytes:
    """Read a file whole; an OSError names it."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        _name_file(error, Path(path))
        raise


def _name_file(error: BaseException, path: Path) -> None:
    """Let an OSError name a file if it names none: reading and writing open ones gives no name."""
    if isinstance(error, OSError) and error.errno and error.filename is None:
        error.filename = str(path)


def check_writable(path: Path) -> None:
    """Raise OSError if the file or folder ``path`` could not be made; remove what a kill has left.

    It is for a command that computes for long before it writes.
    """
    refuse_address(path)
    folder = _written(path.absolute()).parent
    # A link to nowhere is no folder, and none can be made in its place.
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    with suppress(FileNotFoundError, NotADirectoryError):
        path.lstat()  # a name may be too long for this disk
    # Only an attempt tells: permissions, quotas and read-only mounts all have a say.
    with tempfile.TemporaryFile(prefix=_PREFIX, dir=folder):
        _remove_leftovers(folder)


def refuse_address(path: Path) -> None:
    """Raise RunError if a path to write to is an address, for which a folder ``s3:`` would be made.

    Raises:
        RunError: It is one.

    """
    if is_address(typed := unfolded(str(path))):
        raise RunError(
            f"results are written to this machine, and {without_secrets(typed)} is an address; "
            "give a path, and copy the files from there"
        )


def refuse_foreign(path: Path, mark: bytes, problem: type[SpectailError]) -> None:
    """Raise ``problem`` if a path is taken by something that spectail did not write.

    An empty file is free. A file of spectail is recognised by its ``mark`` near the beginning or
    the end. So a mistyped path costs no other file, and the same command can run twice.
    """
    if not os.path.lexists(path):
        return
    if path.is_file() and (not path.stat().st_size or _has_mark(path, mark)):
        return
    if path.is_symlink() and not path.exists():
        return  # the file that the link points to will be made
    raise problem(f"{path} exists and spectail did not write it, so it stays: give another name")


def _written(path: Path) -> Path:
    """Return what is written for a path: a link stays a link, and what it points to is replaced."""
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def _has_mark(path: Path, mark: bytes) -> bool:
    """Whether the first or last bytes of a file contain a mark."""
    with path.open("rb") as file:
        start = file.read(_HEAD)
        file.seek(max(0, path.stat().st_size - _TAIL))
        return mark in start or mark in file.read(_TAIL)


@contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """Make a temporary folder in ``parent`` and remove it at the end."""
    parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(parent)
    folder, lock = _new_name(parent), None
    # The name is known before the folder is made, so Ctrl-C at any moment leaves nothing.
    try:
        while (lock := _locked_folder(folder)) is None:
            folder = _new_name(parent)
        yield folder
    finally:
        try:
            _remove_folder(folder, lock)
        except KeyboardInterrupt:
            _remove_folder(folder, None)
            raise


def _new_name(parent: Path) -> Path:
    """Return a name for a temporary folder that nothing else has."""
    return parent / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"


def _locked_folder(folder: Path) -> int | None:
    """Make a folder and lock it; return the descriptor of its lock, or None if that was too late.

    Without a lock yet, another process may take the folder for a leftover.
    """
    folder.mkdir(mode=0o700)
    try:
        return open_locked(folder / _LOCK)
    except FileNotFoundError:
        return None


def _remove_leftovers(parent: Path) -> None:
    """Remove the temporary folders of processes that have ended."""
    for folder in parent.glob(f"{_PREFIX}*{_SUFFIX}"):
        # Leftovers of another user may not be ours to remove.
        with suppress(OSError):
            if not (folder / _LOCK).exists():
                folder.rmdir()
            elif (lock := open_locked(folder / _LOCK)) is not None:
                # On a disk without locks a second one is granted too, and the process may be alive.
                if (second := open_locked(folder / _LOCK)) is None:
                    _remove_folder(folder, lock)
                else:
                    os.close(lock)
                    os.close(second)


def _remove_folder(folder: Path, lock: int | None) -> None:
    """Remove a temporary folder, if there is one, and release its lock, which is removed last."""
    try:
        for path in folder.iterdir() if folder.exists() else ():
            if path.name != _LOCK:
                _remove(path)
    finally:
        if lock is not None:
            os.close(lock)
    (folder / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # somebody else cleans up too
        folder.rmdir()


def _remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _missing_folders(folder: Path) -> list[Path]:
    """List the folders that have to be made for ``folder`` to exist, the outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    return missing[::-1]


def _flush(path: Path) -> None:
    """Make sure that a file, or all files of a folder, are on the disk, and not only promised.

    A network drive or a quota may refuse what was written as late as this; after a power cut a
    renamed file could be empty without it.
    """
    if path.is_dir():
        for inner in path.rglob("*"):
            if inner.is_file():
                _flush(inner)
        return
    # Windows can only flush a file that is open for writing.
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
