"""Compute eigenvalues of windows on a GPU, in float64 and in stacks sized to the free memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from spectail.core.windows import Window

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]

_COPIES = 6
"""Memory that a window needs, in multiples of its own size: the cut, its Gram matrix, and the copy
and work space of the solver."""
_SHARE = 0.5
"""Share of the free memory that one stack may take. It is a half because two layers are in progress
at a time."""


def stacked_eigenvalues(
    matrices: Tensor,
    window: Window,
    positions: Sequence[tuple[int, int]],
    *,
    scale: float,
    exact_zeros: bool,
) -> Array:
    """Return the eigenvalues of windows, shape (positions, matrices, window.rows).

    Stacks of windows are solved together. The windows must not be taller than wide. When a stack
    does not fit into memory, or is too large for the solver, it is halved and tried again. A single
    window that does not fit raises torch's OutOfMemoryError.
    """
    found = np.empty((len(positions), matrices.shape[0], window.rows))
    done, count = 0, min(len(positions), _fitting(matrices, window))
    while done < len(positions):
        taken = positions[done : done + count]
        try:
            values = _solved(_stack(matrices, window, taken).mul_(scale), exact_zeros=exact_zeros)
        except RuntimeError as error:
            if count == 1 or not (is_out_of_memory(error) or _is_of_solver(error)):
                raise
            values = None
        # Outside of the handler, which would keep the failed stack in memory.
        if values is None:
            torch.cuda.empty_cache()
            count = count // 2
            continue
        found[done : done + count] = values
        done += len(taken)
    return found


@lru_cache
def start_solver(device: str) -> None:
    """Load the solvers of a GPU; call it before several threads use them.

    torch loads them at their first use, and fails where two threads come at the same time ("lazy
    wrapper should be called at most once").
    """
    torch.linalg.eigvalsh(torch.eye(2, dtype=torch.float64, device=device))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the GPU has too little free memory."""
    # cuBLAS and cuSOLVER, and CUDA itself outside of torch's allocator, have errors of their own.
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        words in str(error) for words in ("STATUS_ALLOC_FAILED", "CUDA error: out of memory")
    )


def _is_of_solver(error: BaseException) -> bool:
    """Return whether cuSOLVER refuses a stack, as it does with some that are too large for it."""
    return "cusolver error" in str(error).lower()


def _solved(stack: Tensor, *, exact_zeros: bool) -> Array:
    """Return the ascending eigenvalues of a stack of windows, scaled as the windows are."""
    # Singular values come in descending order, eigenvalues in ascending order.
    values = (
        torch.linalg.svdvals(stack).flip(-1) ** 2
        if exact_zeros
        else torch.linalg.eigvalsh(stack @ stack.mH)
    )
    numbers: Array = values.cpu().numpy()
    return numbers


def _stack(matrices: Tensor, window: Window, positions: Sequence[tuple[int, int]]) -> Tensor:
    """Return a copy of the windows at these positions of every matrix, in double precision."""
    cut = torch.stack([matrices[:, r : r + window.rows, c : c + window.cols] for r, c in positions])
    return cut.to(torch.complex128 if cut.is_complex() else torch.float64)


def _fitting(matrices: Tensor, window: Window) -> int:
    """Return how many positions fit into one stack."""
    # 256 MiB where there is no GPU: the tests run this code on the CPU.
    free = torch.cuda.mem_get_info(matrices.device)[0] if matrices.is_cuda else 2**28
    return max(
        1, int(free * _SHARE) // (_COPIES * 8 * matrices.shape[0] * window.rows * window.cols)
    )
