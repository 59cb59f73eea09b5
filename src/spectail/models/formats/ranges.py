"""Arrays that lie in a file as plain numbers: an indexed piece is read without the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from spectail.models.formats.open_file import ReadableFile
from spectail.models.lazy_tensor import Index, LazyTensor, dtype_name, piece_of


@dataclass(frozen=True)
class StoredArray:
    """Where an array's numbers lie in a file, little-endian; strides count elements."""

    file: ReadableFile
    offset: int
    """Bytes from the beginning of the file to the first element."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse negative numbers, which only a damaged file has."""
        if self.offset < 0 or any(number < 0 for number in (*self.shape, *self.strides)):
            raise ValueError(
                f"an array at {self.offset} of shape {self.shape} and strides {self.strides}"
            )

    @property
    def end(self) -> int:
        """Position of the byte after the last element."""
        return self.offset + _span(self.shape, self.strides) * self.dtype.itemsize

    def read(self, index: Index = ()) -> Tensor:
        """Read the indexed piece into memory of its own."""
        piece, rest = self._narrowed(index)
        buffer = np.empty(piece.end - piece.offset, np.uint8)
        piece.file.read_into(piece.offset, buffer.data)
        flat = (
            torch.from_numpy(buffer).view(piece.dtype)
            if buffer.size
            else torch.empty(0, dtype=piece.dtype)
        )
        values = flat.as_strided(piece.shape, piece.strides)
        return values[rest] if rest else values

    def _narrowed(self, index: Index) -> tuple[StoredArray, Index]:
        """Apply an index to the position in the file; return also what is left to apply."""
        offset, shape, strides = self.offset, list(self.shape), list(self.strides)
        dim = 0
        for entry in index:
            # Indexing a range resolves negative numbers,
            # open ends and steps exactly as Python does.
            places = range(shape[dim])[entry]
            if isinstance(places, int):
                offset += places * strides[dim] * self.dtype.itemsize
                del shape[dim], strides[dim]
                continue
            # A slice only moves the first element and stretches the stride; nothing is read yet.
            offset += places.start * strides[dim] * self.dtype.itemsize if len(places) else 0
            shape[dim] = len(places)
            strides[dim] *= places.step
            dim += 1
        # torch has no negative strides: read everything and leave the index to torch.
        if any(stride < 0 for stride in strides):
            return self, index
        return StoredArray(self.file, offset, self.dtype, tuple(shape), tuple(strides)), ()


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of an array whose last dimension is contiguous.

    >>> row_major((4, 3, 2))
    (6, 2, 1)
    """
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def column_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of an array whose first dimension is contiguous.

    >>> column_major((4, 3, 2))
    (1, 4, 12)
    """
    return tuple(math.prod(shape[:dim]) for dim in range(len(shape)))


def stored_tensor(name: str, array: StoredArray) -> LazyTensor:
    """Describe an array in a file under a parameter's name."""
    place = (str(array.file.path), array.offset, array.shape, array.strides, array.dtype)
    # Two names of one place in a file are tied weights. Empty arrays share places by chance.
    identity = place if math.prod(array.shape) else None
    return LazyTensor(
        name,
        array.shape,
        dtype_name(array.dtype),
        partial(StoredArray.read, array),
        identity=identity,
    )


def is_remote(tensor: LazyTensor) -> bool:
    """Return whether the tensor lies in a remote file as plain numbers, readable in pieces."""
    array = _array_of(tensor)
    return array is not None and array.file.remote


def reads_rows(tensor: LazyTensor) -> bool:
    """Return whether some of the tensor's rows are read without the others."""
    read = tensor.read
    if isinstance(read, partial) and read.func is piece_of:
        return True
    array = _array_of(tensor)
    # What is not stored row by row, such as Fortran's arrays, has its rows scattered in the file.
    return array is not None and list(array.strides) == sorted(array.strides, reverse=True)


def _array_of(tensor: LazyTensor) -> StoredArray | None:
    """Return where the tensor lies in a file, or None if it is computed from what lies there."""
    read = tensor.read
    if isinstance(read, partial) and read.func is StoredArray.read:
        array: StoredArray = read.args[0]
        return array
    return None


def permuted_tensor(stored: LazyTensor, axes: Sequence[int]) -> LazyTensor:
    """Reorder the dimensions of a tensor."""
    # The values cannot be read; only the shape is needed for the row.
    if stored.problem:
        return replace(stored, shape=tuple(stored.shape[axis] for axis in axes))
    shape = tuple(stored.shape[axis] for axis in axes)
    return replace(stored, shape=shape, read=partial(_read_permuted, stored.read, tuple(axes)))


def _read_permuted(read: Callable[[Index], Tensor], axes: tuple[int, ...], index: Index) -> Tensor:
    """Read a tensor whole, reorder its dimensions and return the indexed piece."""
    return piece_of(read(()).permute(axes), index)


def reshaped_tensor(stored: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """Give a tensor another shape with the same entries in the same order."""
    return replace(stored, shape=shape, read=partial(_read_reshaped, stored.read, shape))


def _read_reshaped(read: Callable[[Index], Tensor], shape: tuple[int, ...], index: Index) -> Tensor:
    """Read a tensor whole, reshape it and return the indexed piece."""
    return piece_of(read(()).reshape(shape), index)


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Return the number of elements from the first to the last one, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
