"""Files of torch.save (.pt, .bin, .pth, .ckpt): their pickle is read as data and runs no code.

There are two layouts: an archive (zip) with ``data.pkl`` and one uncompressed member per storage,
and the older sequence of pickles with the storages behind them. Plain pickles of dicts of tensors
or arrays are read too.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spectail.basics.texts import first_names
from spectail.errors import SourceError
from spectail.models.formats.format import Contents, Format
from spectail.models.formats.open_file import MemoryFile, ReadableFile
from spectail.models.formats.pickled import Storage
from spectail.models.formats.state_dict import state_tensors
from spectail.models.formats.unpickle import CodeInPickleError, PlainUnpickler
from spectail.models.formats.zipped import member, open_archive
from spectail.models.lazy_tensor import LazyTensor

_MAGIC = 0x1950A86A20F9469CFC6C
"""The first value of the older layout, from torch's serialization."""
_FROM_TORCHSCRIPT = (
    "python -c \"import torch; torch.save(torch.jit.load('{}', map_location='cpu').state_dict(), "
    "'model.pt')\""
)


def read_pickles(files: Sequence[ReadableFile]) -> Contents:
    """Describe the tensors of one or several files, in the files' order."""
    tensors: dict[str, LazyTensor] = {}
    foreign: dict[str, None] = {}
    for file in files:
        value, left_out = load_pickle(file)
        try:
            state = state_tensors(value)
        # ``state_tensors`` does not know the file; its messages continue after the path.
        except SourceError as error:
            raise SourceError(f"{file.path} {error}") from None
        foreign |= left_out
        if not state:
            raise SourceError(
                f"{file.path} holds no tensors; expected the state dict of a model{_named(foreign)}"
            )
        for stored in state:
            if stored.name in tensors:
                raise SourceError(
                    f"tensor {stored.name!r} is in {file.name} and in an earlier shard; "
                    "each tensor may be in one shard only"
                )
            tensors[stored.name] = stored
    notes = (f"left out what is no tensor: {first_names(foreign, 3)}",) if foreign else ()
    return Contents(list(tensors.values()), notes=notes)


def _named(foreign: dict[str, None]) -> str:
    """Return the end of a message that names foreign objects, if there are any."""
    return f", and it holds objects of {first_names(foreign, 3)}" if foreign else ""


def load_pickle(file: ReadableFile) -> tuple[Any, dict[str, None]]:
    """Read a torch file or a plain pickle as data; return also the names of what was left out.

    Raises:
        SourceError: The file is no pickle, is damaged, or holds code. The message is one line.

    """
    if file.size == 0:
        raise SourceError(f"{file.path} is empty; expected a file written by torch.save")
    try:
        return _load(file)
    except (SourceError, OSError):
        raise
    except CodeInPickleError as error:
        raise SourceError(
            f"{file.path} holds code that would run on loading ({error.args[0]}), "
            "which is never loaded; save the module's state_dict() instead, "
            "and do not open this file with pickle or torch"
        ) from None
    except Exception:  # noqa: BLE001 - a damaged pickle may fail in any way
        raise SourceError(
            f"{file.path} is not a readable file of torch.save: "
            "it is truncated, damaged or of another format"
        ) from None


def _load(file: ReadableFile) -> tuple[Any, dict[str, None]]:
    """Read a file of either layout."""
    return load_archive(file) if file.read(0, 2) == b"PK" else _load_sequence(file)


def _nested(content: bytes) -> Any:
    """Read a storage that was pickled as the bytes of a torch file."""
    return _load(MemoryFile(Path("a pickled storage"), content))[0]


def load_archive(
    file: ReadableFile, start: int = 0, size: int | None = None
) -> tuple[Any, dict[str, None]]:
    """Read the archive at ``start``; ``size`` is its length if it is only a part of the file."""
    with open_archive(file, start, size) as archive:
        names = set(archive.namelist())
        file.prefetch(start + info.header_offset for info in archive.infolist())
        (main,) = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        folder = main.removesuffix("data.pkl")
        # These members exist in TorchScript archives only.
        if f"{folder}constants.pkl" in names or any(
            name.startswith(f"{folder}code/") for name in names
        ):
            command = _FROM_TORCHSCRIPT.format(file.path)
            raise SourceError(
                f"{file.path} is a TorchScript archive, which holds code; "
                f"convert it with: {command}"
            )
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise SourceError(
                f"{file.path} was written on a big-endian machine; "
                "only little-endian files are read"
            )
        storages: dict[str, Storage] = {}

        def load_storage(pid: Any) -> Storage:
            # The id is ("storage", class, key, device, number of elements).
            _, kind, key, location, _ = pid
            # Several tensors may be views of one storage, so it is looked up once.
            if key not in storages:
                storages[key] = _member(
                    file, start, archive, f"{folder}data/{key}", kind.dtype, location
                )
            return storages[key]

        with archive.open(main) as stream:
            unpickler = PlainUnpickler(stream, load_storage, _nested)
            return unpickler.load(), unpickler.foreign


def _member(
    file: ReadableFile,
    start: int,
    archive: zipfile.ZipFile,
    name: str,
    dtype: torch.dtype,
    location: str,
) -> Storage:
    """Find the bytes of one storage in the archive."""
    if location == "meta":
        return Storage(dtype, problem="on the meta device, its values were never loaded")
    return Storage(dtype, *member(file, start, archive, name))


def _load_sequence(file: ReadableFile) -> tuple[Any, dict[str, None]]:
    """Read torch's older layout, or a plain pickle."""
    pickles = _Sequence(file)
    value = pickles.load()
    if not isinstance(value, int) or value != _MAGIC:
        return value, pickles.foreign
    pickles.load()  # version of the protocol
    # Then a dict about the machine, the saved value, and
    # the keys of the storages in the file's order.
    system = pickles.load()
    if not system.get("little_endian", True):
        raise SourceError(
            f"{file.path} was written on a big-endian machine; only little-endian files are read"
        )
    value = pickles.load()
    keys = pickles.load()
    _place_storages(file, pickles.stream.tell(), [pickles.storages[key] for key in keys])
    return value, pickles.foreign


class _Sequence:
    """The pickles of torch's older layout, which lie in a file one after the other."""

    def __init__(self, file: ReadableFile) -> None:
        self.stream = file.stream()
        self.storages: dict[str, Storage] = {}
        self.foreign: dict[str, None] = {}

    def load(self) -> Any:
        """Read the next pickle."""
        unpickler = PlainUnpickler(self.stream, self._load_storage, _nested)
        value = unpickler.load()
        self.foreign.update(unpickler.foreign)
        return value

    def _load_storage(self, pid: Any) -> Any:
        """Return the storage of a persistent id; where its bytes lie is not known yet."""
        if pid[0] == "module":  # source code of a container, written by very old versions
            return pid[1]
        _, kind, key, location, _, *view = pid
        storage = self.storages.setdefault(key, Storage(kind.dtype))
        if location == "meta":
            storage.problem = "on the meta device, its values were never loaded"
        if view and view[0] is not None:
            raise pickle.UnpicklingError("a view of a storage")
        return storage


def _place_storages(file: ReadableFile, position: int, storages: Sequence[Storage]) -> None:
    """Fill in where the storages lie: behind the pickles, one after the other."""
    for storage in storages:
        # Each is the number of its elements as 8 bytes, then the elements.
        count = int.from_bytes(file.read(position, 8), "little")
        storage.file, storage.offset = file, position + 8
        storage.size = count * storage.dtype.itemsize
        position += 8 + storage.size
    if position > file.size:
        raise ValueError(position)


def _looks_like(start: bytes, size: int) -> bool:
    """Whether an archive begins with a member of torch's, or a file with torch's magic number."""
    members = (
        b"/data.pkl",
        b"/version",
        b"/byteorder",
        b"/code/",
        b"/.format_version",
        b"/constants.pkl",
        b"/data/",
    )
    # The first member's name is within the first 512 bytes of a zip archive.
    archive = start[:2] == b"PK" and any(member in start for member in members)
    return archive or start[2:14] == b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"


FORMAT = Format(
    name="a file of torch.save",
    suffixes=(".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".jit"),
    read=read_pickles,
    looks_like=_looks_like,
    folder=("*.bin", "*.pth", "*.pt", "*.ckpt"),
)
