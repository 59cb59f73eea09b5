"""Functions that turn a piece of a stored tensor into matrices, (n_matrices, rows, cols).

There is one function for each layout that ``rules`` recognises. They are module-level functions
(with ``functools.partial``), so that a layer can be sent to another process. None copies more than
it must, and none changes its input.
"""

from __future__ import annotations

import torch
from torch import Tensor


def as_is(tensor: Tensor) -> Tensor:
    """Return a tensor that is (n_matrices, rows, cols) already."""
    return tensor


def as_one(tensor: Tensor) -> Tensor:
    """Return one matrix in its stored orientation."""
    return tensor.unsqueeze(0)


def transposed(tensor: Tensor) -> Tensor:
    """Return one matrix that is stored as (in, out) as (out, in)."""
    return tensor.T.unsqueeze(0)


def kernel_slices(tensor: Tensor) -> Tensor:
    """Turn a convolution (out, in, *kernel) into one (out, in) matrix per kernel position."""
    # All kernel dimensions become one, in front of (out, in).
    return tensor.flatten(2).permute(2, 0, 1)


def axes(tensor: Tensor, *, order: tuple[int, int, int]) -> Tensor:
    """Reorder three dimensions to matrices, rows, columns."""
    return tensor.permute(order)


def modes(tensor: Tensor, *, real_view: bool) -> Tensor:
    """Turn a complex (in, out, *modes), or its real view, into one (out, in) matrix per mode."""
    if real_view:
        tensor = torch.view_as_complex(tensor.contiguous())
    # Stored inputs come first, so the last two dimensions are exchanged to (out, in).
    return tensor.flatten(2).permute(2, 1, 0)


def channel_modes(tensor: Tensor, *, real_view: bool) -> Tensor:
    """Turn a complex (channels, *modes), or its real view, into (modes, channels, 1).

    Each channel is computed by itself, so every mode has one column.
    """
    if real_view:
        tensor = torch.view_as_complex(tensor.contiguous())
    return tensor.flatten(1).T.unsqueeze(2)


def grouped_rows(tensor: Tensor, *, groups: int, start: int, stop: int) -> Tensor:
    """Return the rows ``start`` to ``stop`` of every group of rows as one matrix.

    The result is a view if each group gives one row; otherwise it may be a copy.
    """
    # (rows, cols) to (groups, rows of a group, cols).
    grouped: Tensor = tensor.unflatten(0, (groups, -1))
    rows = grouped[:, start] if stop - start == 1 else grouped[:, start:stop].flatten(0, 1)
    return rows.unsqueeze(0)


def grouped_columns(tensor: Tensor, *, groups: int, start: int, stop: int) -> Tensor:
    """Return the same segment of columns of a matrix that is stored as (in, out)."""
    return grouped_rows(tensor.T, groups=groups, start=start, stop=stop)
