"""A part: the piece of a stored tensor that is one layer, and how it becomes matrices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from spectail.models.layout.arrange import as_one, transposed
from spectail.models.lazy_tensor import Index, LazyTensor, as_float, piece_of

Arrange: TypeAlias = Callable[[Tensor], Tensor]
"""Turns a piece into (n_matrices, rows, cols): see ``arrange``."""
_BAND_AXES: dict[Arrange, int] = {as_one: 0, transposed: 1}
""":attr:`Part.band_axis` by arrangement."""
_SHORT = {torch.float16, torch.bfloat16}


@dataclass(frozen=True)
class Part:
    """One layer inside a stored tensor: which piece to read, and how to arrange it as matrices.

    The matrices have the shape (n_matrices, rows, cols).
    """

    name: str
    """Name of the layer."""
    kind: str
    """What the layer does: see :func:`~spectail.models.naming.kinds.kind_of`."""
    n_matrices: int
    rows: int
    cols: int
    index: Index
    """Which piece of the stored tensor belongs to the layer."""
    arrange: Arrange = field(repr=False)
    """Turns that piece into matrices."""
    note: str = ""
    """What a user should know about how the tensor was cut, or why it was not. It appears in the
    layer's row."""

    @property
    def cut(self) -> str:
        """A short text that differs between two ways to cut a parameter."""
        text = f"{self.index} {_spelled(self.arrange)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(self, tensor: LazyTensor) -> Tensor:
        """Read the matrices, (n_matrices, rows, cols), in float32 or wider."""
        return self.arrange(as_float(tensor.read(self.index)))

    @property
    def band_axis(self) -> int | None:
        """Along which side of the matrix bands can be read alone: 0 for rows, 1 for columns.

        None if the layout is not one matrix that lies in the tensor row by row.
        """
        if sum(isinstance(entry, slice) for entry in self.index) > 1:
            return None
        return _BAND_AXES.get(self.arrange)

    def read_band(self, tensor: LazyTensor, start: int, stop: int) -> Tensor:
        """Read a band of one matrix along ``band_axis``, without the rest, as (1, rows, cols).

        Floats of 16 bits stay as they are: where bands are read, memory counts.
        """
        index: Index = (*self.index, slice(start, stop))
        if self.index and isinstance(self.index[-1], slice):
            # The part is itself a band of the stored rows.
            first = range(tensor.shape[len(self.index) - 1])[self.index[-1]].start
            index = (*self.index[:-1], slice(first + start, first + stop))
        band = tensor.read(index)
        return self.arrange(band if band.dtype in _SHORT else as_float(band))

    def view(self, tensor: Tensor) -> Tensor:
        """Arrange a tensor in memory without changing its type: a view if the layout allows one."""
        return self.arrange(piece_of(tensor.detach(), self.index))

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Write values (n_matrices, rows, cols) to this part's place in a tensor, nowhere else."""
        piece = piece_of(tensor.detach(), self.index)
        target = self.arrange(piece)
        # Same storage means that the arranged tensor is a view, so copying into it is enough.
        if target.untyped_storage().data_ptr() == piece.untyped_storage().data_ptr():
            target.copy_(values)
            return
        # Some layouts can only be read as a copy. Arranging the numbers of the entries in the same
        # way tells where each value belongs.
        numbers = torch.arange(piece.numel(), device=piece.device).reshape(piece.shape)
        piece.put_(self.arrange(numbers), values.to(piece.dtype))


def _spelled(value: object) -> str:
    """Spell a function with its arguments, without its address in memory."""
    if isinstance(value, partial):
        given = [
            *map(_spelled, value.args),
            *(f"{k}={_spelled(v)}" for k, v in value.keywords.items()),
        ]
        return f"{_spelled(value.func)}({', '.join(given)})"
    return getattr(value, "__qualname__", None) or repr(value)
