"""A part: the piece of a stored tensor that is one layer, and how it becomes matrices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from spectail.models.lazy_tensor import Index, LazyTensor, as_float, piece_of

Arrange: TypeAlias = Callable[[Tensor], Tensor]
"""Turns a piece into (n_matrices, rows, cols): see ``arrange``."""


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
