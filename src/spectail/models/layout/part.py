"""A part: the piece of a stored tensor that is one layer, and how that piece becomes matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from spectail.models.lazy_tensor import Index, LazyTensor, as_float, piece_of

Arrange: TypeAlias = Callable[[Tensor], Tensor]
"""Turns the piece into (n_matrices, rows, cols); see ``arrange``."""


@dataclass(frozen=True)
class Part:
    """One layer inside of a stored tensor: what to read of it, and how that becomes (n_matrices, rows, cols)."""

    name: str
    kind: str
    n_matrices: int
    rows: int
    cols: int
    index: Index
    arrange: Arrange = field(repr=False)
    note: str = ""
    """What a user should know about how the tensor was cut, or why it was not; the layer's row
    carries it."""

    def read(self, tensor: LazyTensor) -> Tensor:
        """Read the matrices, (n_matrices, rows, cols), in float32 or wider."""
        return self.arrange(as_float(tensor.read(self.index)))

    def view(self, tensor: Tensor) -> Tensor:
        """Arrange a tensor in memory in its own type: a view of it wherever the layout allows one."""
        return self.arrange(piece_of(tensor.detach(), self.index))

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Put values (n_matrices, rows, cols) in this part's place in a tensor; nothing else of it is touched."""
        piece = piece_of(tensor.detach(), self.index)
        target = self.arrange(piece)
        if target.untyped_storage().data_ptr() == piece.untyped_storage().data_ptr():
            target.copy_(values)
            return
        # Some layouts can only be read as a copy; numbering the entries tells where each value
        # belongs.
        numbers = torch.arange(piece.numel(), device=piece.device).reshape(piece.shape)
        piece.put_(self.arrange(numbers), values.to(piece.dtype))
