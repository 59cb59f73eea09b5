"""What a piece of a stored tensor becomes: (n_matrices, rows, cols), for the layouts that ``matrices`` recognises.

Module-level functions (with ``functools.partial``), so that a layer can be sent to another process. None copies more
than it must, none changes its input.
"""

from __future__ import annotations

import torch
from torch import Tensor


def as_is(tensor: Tensor) -> Tensor:
    """Return what is arranged already."""
    return tensor


def as_one(tensor: Tensor) -> Tensor:
    """One matrix as stored."""
    return tensor.unsqueeze(0)


def transposed(tensor: Tensor) -> Tensor:
    """One matrix stored as (in, out)."""
    return tensor.T.unsqueeze(0)


def kernel_slices(tensor: Tensor) -> Tensor:
    """(out, in, *kernel) to (positions, out, in)."""
    return tensor.flatten(2).permute(2, 0, 1)


def modes(tensor: Tensor, *, real_view: bool) -> Tensor:
    """Complex (in, out, *modes), or its real view, to (modes, out, in)."""
    if real_view:
        tensor = torch.view_as_complex(tensor.contiguous())
    return tensor.flatten(2).permute(2, 1, 0)


def columns(tensor: Tensor, *, start: int, stop: int) -> Tensor:
    """Some columns of a matrix stored as (in, out)."""
    return tensor[:, start:stop].T.unsqueeze(0)


def every_second_column(tensor: Tensor, *, start: int) -> Tensor:
    """Interleaved columns of a matrix stored as (in, out)."""
    return tensor[:, start::2].T.unsqueeze(0)


def every_second_row(tensor: Tensor, *, start: int) -> Tensor:
    """Interleaved rows of a matrix."""
    return tensor[start::2].unsqueeze(0)


def headwise(tensor: Tensor, *, heads: int, which: int) -> Tensor:
    """Query, key or value of a weight that is stored head by head."""
    size = tensor.shape[0] // (3 * heads)
    return tensor.reshape(heads, 3, size, -1)[:, which].reshape(1, heads * size, -1)
