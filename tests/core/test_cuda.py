"""The stacks that a GPU solves: the same eigenvalues as on the CPU, halved where memory runs out.

The function runs on CPU tensors here; ``tests/cuda`` runs it on a GPU.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectail.core import cuda
from spectail.core.spectra import window_eigenvalues
from spectail.core.windows import Grid, Window


def case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, Window, list[tuple[int, int]]]:
    matrices = torch.randn(2, 90, 120, generator=torch.Generator().manual_seed(0), dtype=dtype)
    window = Window(30, 40)
    return matrices, window, Grid(4).positions(90, 120, window)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("exact", [False, True])
def test_stacks_give_the_eigenvalues_of_the_cpu(dtype: torch.dtype, exact: bool) -> None:
    matrices, window, positions = case(dtype)
    found = cuda.stacked_eigenvalues(matrices, window, positions, scale=0.5, exact_zeros=exact)
    expected = window_eigenvalues(matrices, window, positions, exact_zeros=exact) / 4
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_stack_that_does_not_fit_is_halved_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices, window, positions = case()
    solve, sizes = torch.linalg.eigvalsh, []

    def small_memory(grams: torch.Tensor) -> torch.Tensor:
        sizes.append(len(grams))
        if len(grams) > 5:
            raise torch.cuda.OutOfMemoryError
        result: torch.Tensor = solve(grams)
        return result

    monkeypatch.setattr(torch.linalg, "eigvalsh", small_memory)
    found = cuda.stacked_eigenvalues(matrices, window, positions, scale=1.0, exact_zeros=False)
    assert sizes == [16, 8, 4, 4, 4, 4]
    np.testing.assert_allclose(found, window_eigenvalues(matrices, window, positions), rtol=1e-9)


def test_a_single_window_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(grams: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(torch.linalg, "eigvalsh", no_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        cuda.stacked_eigenvalues(*case(), scale=1.0, exact_zeros=False)


@pytest.mark.parametrize(
    ("error", "smallest"),
    [
        (RuntimeError("cusolver error: CUSOLVER_STATUS_INVALID_VALUE, when calling syevd"), 4),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), 4),
        (RuntimeError("CUDA error: out of memory"), 4),
        (RuntimeError("the sizes of tensors must match"), 16),
    ],
)
def test_errors_of_the_libraries_count_as_a_lack_of_memory(
    error: RuntimeError, smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def solve(grams: torch.Tensor) -> torch.Tensor:
        sizes.append(len(grams))
        if len(grams) == 4:
            raise KeyboardInterrupt
        raise error

    monkeypatch.setattr(torch.linalg, "eigvalsh", solve)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        cuda.stacked_eigenvalues(*case(), scale=1.0, exact_zeros=False)
    assert sizes[-1] == smallest
