"""What a piece of a stored tensor becomes: (n_matrices, rows, cols), for the layouts that ``rules`` recognises.

Module-level functions (with ``functools.partial``), so that a layer can be sent to another process.
None copies more than it must, none changes its input.
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


def axes(tensor: Tensor, *, order: tuple[int, int, int]) -> Tensor:
    """Three dimensions in another order: matrices, rows, columns."""
    return tensor.permute(order)


def modes(tensor: Tensor, *, real_view: bool) -> Tensor:
    """Complex (in, out, *modes), or its real view, to (modes, out, in)."""
    if real_view:
        tensor = torch.view_as_complex(tensor.contiguous())
    return tensor.flatten(2).permute(2, 1, 0)


def channel_modes(tensor: Tensor, *, real_view: bool) -> Tensor:
    """Complex (channels, *modes), or its real view, to (modes, channels, 1): each channel stays by itself."""
    if real_view:
        tensor = torch.view_as_complex(tensor.contiguous())
    return tensor.flatten(1).T.unsqueeze(2)


def grouped_rows(tensor: Tensor, *, groups: int, start: int, stop: int) -> Tensor:
    """One segment of the rows of every group, as one matrix; a view where a segment is one row."""
    grouped: Tensor = tensor.unflatten(0, (groups, -1))  # type: ignore[no-untyped-call]
    rows = grouped[:, start] if stop - start == 1 else grouped[:, start:stop].flatten(0, 1)
    return rows.unsqueeze(0)


def grouped_columns(tensor: Tensor, *, groups: int, start: int, stop: int) -> Tensor:
    """One segment of the columns of every group of a matrix stored as (in, out)."""
    return grouped_rows(tensor.T, groups=groups, start=start, stop=stop)
