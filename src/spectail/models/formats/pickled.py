"""The results of reading a pickle as data: descriptions of tensors, and objects that do nothing."""

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
    """The bytes that tensors of a torch file share.

    An old file tells only at its end where these bytes lie, so the fields are filled in later.
    """

    dtype: torch.dtype
    file: ReadableFile | None = None
    offset: int = 0
    """Position of the first byte in the file."""
    size: int = 0
    """Number of bytes."""
    problem: str | None = None
    """Why there are no bytes, if so."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the attributes that a pickle gives."""


@dataclass(frozen=True)
class TensorRef:
    """A tensor that a pickle describes: a view of a storage, or what is wrong with it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: Storage | None = None
    first: int = 0
    """Index of the tensor's first element in the storage."""
    strides: tuple[int, ...] = ()
    problem: str | None = None
    scales: Any = None
    """For a quantised tensor of torch.ao: scale and zero point, and the dimension they vary along,
    if any."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the attributes that a pickle gives."""

    def array(self) -> StoredArray:
        """Return where the numbers lie.

        Raises:
            SourceError: The file does not hold them.
            ValueError: The description is damaged.

        """
        if self.storage is None or self.storage.file is None:
            raise SourceError("a tensor has no values in the file")
        offset = self.storage.offset + self.first * self.dtype.itemsize
        array = StoredArray(self.storage.file, offset, self.dtype, self.shape, self.strides)
        # A damaged or crafted description could otherwise read another tensor's bytes.
        if self.first < 0 or array.end > self.storage.offset + self.storage.size:
            raise ValueError(f"a tensor of shape {self.shape} that does not fit into its storage")
        return array


class Inert:
    """An object whose class was not imported, or the result of a function not called."""

    global_name: ClassVar[str] = ""
    """Module and name of the class, such as ``argparse.Namespace``."""

    def __init__(self, *args: Any, **named: Any) -> None:
        """Remember the arguments."""
        self.contents: list[Any] = [*args, *named.values()]

    def __new__(cls, *args: Any, **named: Any) -> Inert:
        """Remember what a pickle passes to ``__new__``; it then does not call ``__init__``."""
        new = super().__new__(cls)
        new.contents = [*args, *named.values()]
        return new

    def __setstate__(self, state: Any) -> None:
        """Remember the attributes."""
        self.contents.append(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Remember an entry of a pickled dict."""
        self.contents.append({key: value} if isinstance(key, str) else value)

    def append(self, value: Any) -> None:
        """Remember an item of a pickled list."""
        self.contents.append(value)

    def extend(self, values: Any) -> None:
        """Remember items of a pickled list."""
        self.contents.extend(values)

    def state(self) -> dict[str, Any]:
        """Return the attributes that the pickle gives the object."""
        found: dict[str, Any] = {}
        for part in self.contents:
            # Objects with slots have the state (dict, dict of slots).
            for piece in part if isinstance(part, tuple) else (part,):
                if isinstance(piece, dict):
                    found.update(piece)
        return found


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[TensorRef]:
    """Yield the tensors inside of an object and its containers.

    Containers may hold each other many times, so each is looked into once. ``seen`` collects their
    ``id``; those that are in it at the beginning are passed over.
    """
    seen = set() if seen is None else seen
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if isinstance(here, TensorRef):
            yield here
        elif isinstance(here, dict | list | tuple | set | Inert) and id(here) not in seen:
            seen.add(id(here))
            inside: Any = here.contents if isinstance(here, Inert) else here
            waiting += inside.values() if isinstance(here, dict) else inside


class NumpyType:
    """numpy's dtype: a code such as ``f4``, and the byte order from its state."""

    def __init__(self, code: Any = "", *flags: Any) -> None:
        """Take the code; the flags (align, copy) do not matter."""
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        """Take the byte order."""
        # A dtype's state is (version, byte order, ...).
        self.order = state[1] if state[1] in "<>=" else "="

    def real(self) -> np.dtype[Any]:
        """Return the dtype; one that holds Python objects is refused."""
        dtype = np.dtype(self.code)
        # The bytes of an array of objects are pointers: reading them would crash the process.
        if dtype.hasobject or dtype.fields:
            raise pickle.UnpicklingError("an array of objects")
        real: np.dtype[Any] = dtype.newbyteorder(self.order)
        return real


class ArrayRef:
    """A numpy array that a pickle holds."""

    def __init__(self) -> None:
        """Start without values, which come with the state."""
        self.value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        """Take the values from an array's state."""
        # The state is (version, shape, dtype, is_fortran, bytes).
        _, shape, dtype, fortran, raw = state
        if isinstance(raw, list):  # an array of Python objects
            return
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: NumpyType, shape: Any, order: Any) -> ArrayRef:
        """Set the values from their bytes."""
        # Protocol 2 writes bytes as a text.
        content = raw.encode("latin1") if isinstance(raw, str) else raw
        self.value = np.frombuffer(content, dtype.real()).reshape(shape, order=order)
        return self
