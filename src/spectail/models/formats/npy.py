"""numpy's .npz and .npy files, in which MLX and plain scripts keep weights; read by ranges.

The header is that of numpy's documentation of the NPY format, versions 1 to 3.
"""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Sequence

import numpy as np
import torch

from spectail.errors import SourceError
from spectail.models.formats.channels_last import from_flax
from spectail.models.formats.format import Contents, Format
from spectail.models.formats.open_file import ReadableFile
from spectail.models.formats.ranges import StoredArray, column_major, row_major, stored_tensor
from spectail.models.formats.zipped import member, open_archive
from spectail.models.lazy_tensor import LazyTensor, unreadable
from spectail.models.naming.names import natural_key

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 2**20
"""Bytes after which a header is taken to be damaged."""


def read_npy(files: Sequence[ReadableFile]) -> Contents:
    """Describe the arrays of one or several files; numbers in names are sorted as numbers."""
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        if file.size == 0:
            raise SourceError(f"{file.path} is empty; expected a file written by numpy")
        try:
            found = (
                _archive(file) if bytes(file.read(0, 2)) == b"PK" else [_array("weight", file, 0)]
            )
        except (
            ValueError,
            KeyError,
            SyntaxError,
            zipfile.BadZipFile,
            NotImplementedError,
            TypeError,
            RecursionError,
            MemoryError,  # Python's parser, of a header nested too deep
        ):
            raise SourceError(
                f"{file.path} is not a readable file of numpy: it is truncated or damaged"
            ) from None
        for stored in found:
            if stored.name in tensors:
                raise SourceError(f"array {stored.name!r} is in {file.name} and in an earlier file")
            tensors[stored.name] = stored
    return Contents(
        sorted(from_flax(list(tensors.values())), key=lambda stored: natural_key(stored.name))
    )


def _archive(file: ReadableFile) -> list[LazyTensor]:
    """Describe the members of an .npz file."""
    with open_archive(file) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        if not names:
            raise ValueError("no array")
        places = {
            name.removesuffix(".npy").replace("/", "."): member(file, 0, archive, name)
            for name in names
        }
    return [_array(name, place, start) for name, (place, start, _) in places.items()]


def _array(name: str, file: ReadableFile, start: int) -> LazyTensor:
    """Describe the array that begins at ``start``."""
    magic = bytes(file.read(start, 12))
    if magic[:6] != _MAGIC:
        raise ValueError("no array")
    # Version 1 has a header length of 2 bytes, later versions have 4.
    wide = magic[6] > 1
    length = int.from_bytes(magic[8:12] if wide else magic[8:10], "little")
    begin = start + (12 if wide else 10)
    if length > _LONGEST_HEADER:
        raise ValueError("a header that long")
    # The header is a Python literal. ``literal_eval`` builds it without running code.
    header = ast.literal_eval(
        bytes(file.read(begin, length)).decode("utf-8" if magic[6] > 2 else "latin1")
    )
    shape = tuple(int(size) for size in header["shape"])
    dtype = torch_dtype(header["descr"])
    if dtype is None:
        return unreadable(
            name, shape, "uint8", f"an array of numpy's type {header['descr']!r}, which is not read"
        )
    # Fortran order needs no conversion: only the strides differ.
    strides = column_major(shape) if header["fortran_order"] else row_major(shape)
    array = StoredArray(file, begin + length, dtype, shape, strides)
    if array.end > file.size:
        raise ValueError("truncated")
    return stored_tensor(name, array)


def torch_dtype(code: object) -> torch.dtype | None:
    """Return torch's type for numpy's code ``<f4``, or None.

    The answer is None for big-endian numbers, long double, objects and records.
    """
    # A record type is a list. Integers and floats of one byte have no byte order, marked "|".
    if not isinstance(code, str) or not re.fullmatch(r"[<|=]?[fciub]\d+", code):
        return None
    name = np.dtype(code).name
    value = getattr(torch, name, None)
    return value if isinstance(value, torch.dtype) else None


FORMAT = Format(
    name="a file of numpy",
    suffixes=(".npz", ".npy"),
    read=read_npy,
    looks_like=lambda start, size: (
        start.startswith(_MAGIC) or (start[:2] == b"PK" and b".npy" in start[:120])
    ),
    folder=("*.npz",),
)
