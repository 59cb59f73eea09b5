"""Eigenvalues of windows on a GPU: stacks of windows as large as its free memory allows, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from spectail.core.windows import Window

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]

_COPIES = 6
"""A window needs about this many times its own size: cut, Gram matrix, the solver's copy and work
space."""
_SHARE = 0.5
"""Part of the free memory that one stack may take: two layers are under way at a time."""


def stacked_eigenvalues(
    matrices: Tensor,
    window: Window,
    positions: Sequence[tuple[int, int]],
    *,
    scale: float,
    exact_zeros: bool,
) -> Array:
    """Eigenvalues of windows no taller than wide, shape (positions, matrices, window.rows), in stacks.

    Where the memory does not suffice the stack is halved and tried again; a single window that does
    not fit raises torch's OutOfMemoryError.
    """
    found = np.empty((len(positions), matrices.shape[0], window.rows))
    done, count = 0, min(len(positions), _fitting(matrices, window))
    while done < len(positions):
        try:
            stack = _stack(matrices, window, positions[done : done + count]) * scale
            values = (
                torch.linalg.svdvals(stack).flip(-1) ** 2
                if exact_zeros
                else torch.linalg.eigvalsh(stack @ stack.mH)
            )
        except torch.cuda.OutOfMemoryError:
            if count == 1:
                raise
            torch.cuda.empty_cache()
            count = count // 2
            continue
        found[done : done + count] = values.cpu().numpy()
        done += count
    return found


def _stack(matrices: Tensor, window: Window, positions: Sequence[tuple[int, int]]) -> Tensor:
    cut = torch.stack([matrices[:, r : r + window.rows, c : c + window.cols] for r, c in positions])
    return cut.to(torch.complex128 if cut.is_complex() else torch.float64)


def _fitting(matrices: Tensor, window: Window) -> int:
    """How many positions a stack may hold."""
    free = torch.cuda.mem_get_info(matrices.device)[0] if matrices.is_cuda else 2**28
    return max(
        1, int(free * _SHARE) // (_COPIES * 8 * matrices.shape[0] * window.rows * window.cols)
    )
