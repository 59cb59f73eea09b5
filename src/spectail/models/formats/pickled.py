"""What a pickle that is read as data becomes: descriptions of tensors and arrays, and inert objects."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from spectail.errors import SourceError
from spectail.models.formats.open_file import ReadableFile
from spectail.models.formats.ranges import StoredArray


@dataclass
class Storage:
    """The bytes that tensors of a torch file share; a legacy file tells only at its end where they lie."""

    dtype: torch.dtype
    file: ReadableFile | None = None
    offset: int = 0
    """Of the first byte."""
    size: int = 0
    """Number of bytes."""
    problem: str | None = None
    """Why there are no bytes, if so."""

    def __setstate__(self, state: Any) -> None:
        """Leave attributes out that a pickle gives."""


@dataclass(frozen=True)
class TensorRef:
    """A tensor that a pickle describes: a view of a storage, or what is wrong with it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: Storage | None = None
    first: int = 0
    """Of the storage's elements, the tensor's first."""
    strides: tuple[int, ...] = ()
    problem: str | None = None
    scales: Any = None
    """Scale, zero point and, where there is one of each per slice, the dimension of a torch.ao
    quantised tensor."""

    def __setstate__(self, state: Any) -> None:
        """Leave attributes out that a pickle gives."""

    def array(self) -> StoredArray:
        """Say where the numbers lie.

        Raises:
            SourceError: the file does not hold them.
            ValueError: the description is damaged.

        """
        if self.storage is None or self.storage.file is None:
            raise SourceError("a tensor has no values in the file")
        offset = self.storage.offset + self.first * self.dtype.itemsize
        array = StoredArray(self.storage.file, offset, self.dtype, self.shape, self.strides)
        if self.first < 0 or array.end > self.storage.offset + self.storage.size:
            raise ValueError(f"a tensor of shape {self.shape} that does not fit into its storage")
        return array


class Inert:
    """An object of a class, or the result of a function, that was not imported."""

    global_name: ClassVar[str] = ""
    """Module and name, ``argparse.Namespace``."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self.contents: list[Any] = [*args, *named.values()]

    def __new__(cls, *args: Any, **named: Any) -> Inert:
        """Remember what a pickle passes to ``__new__``, for then it calls no ``__init__``."""
        new = super().__new__(cls)
        new.contents = [*args, *named.values()]
        return new

    def __setstate__(self, state: Any) -> None:
        self.contents.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.contents.append({key: value} if isinstance(key, str) else value)

    def append(self, value: Any) -> None:
        """Take an item of a pickled list."""
        self.contents.append(value)

    def extend(self, values: Any) -> None:
        """Take items of a pickled list."""
        self.contents.extend(values)

    def state(self) -> dict[str, Any]:
        """Return the attributes that the pickle gives the object."""
        found: dict[str, Any] = {}
        for part in self.contents:
            for piece in part if isinstance(part, tuple) else (part,):
                if isinstance(piece, dict):
                    found.update(piece)
        return found


def tensors_in(value: Any, depth: int = 12) -> Iterator[TensorRef]:
    """List the tensors inside of an object and its containers."""
    if isinstance(value, TensorRef):
        yield value
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, Inert):
        yield from tensors_in(value.contents, depth - 1)


class NumpyType:
    """numpy's dtype: a code such as ``f4``, and the byte order that its state gives."""

    def __init__(self, code: Any = "", *flags: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in "<>=" else "="

    def real(self) -> np.dtype[Any]:
        """Return the dtype; one that holds Python objects is refused."""
        dtype = np.dtype(self.code)
        if dtype.hasobject or dtype.fields:
            raise pickle.UnpicklingError("an array of objects")
        real: np.dtype[Any] = dtype.newbyteorder(self.order)
        return real


class ArrayRef:
    """A numpy array that a pickle holds."""

    def __init__(self) -> None:
        self.value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if isinstance(raw, list):  # an array of Python objects
            return
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: NumpyType, shape: Any, order: Any) -> ArrayRef:
        """Take the values from their bytes."""
        content = raw.encode("latin1") if isinstance(raw, str) else raw
        self.value = np.frombuffer(content, dtype.real()).reshape(shape, order=order)
        return self
