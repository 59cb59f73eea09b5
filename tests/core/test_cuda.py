"""The stacks that a GPU solves: the same eigenvalues as on the CPU, halved where memory runs out.

Without a GPU the same function runs on CPU tensors; the last tests need one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import spectail as st
from spectail.core import cuda
from spectail.core.spectra import window_eigenvalues
from spectail.core.windows import Grid, Window

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


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


@gpu
@pytest.mark.parametrize("cutoff", ["median", "top:0.1"])
def test_gpu_and_cpu_agree_on_alpha(cutoff: str) -> None:
    matrix = torch.randn(600, 900, generator=torch.Generator().manual_seed(1))
    spec = st.Spec(window=200, cutoff=cutoff)
    assert st.tail_fit(matrix.cuda(), spec).alpha == pytest.approx(
        st.tail_fit(matrix, spec).alpha, rel=1e-4
    )


@gpu
def test_a_model_measured_on_the_gpu_gives_the_table_of_the_cpu() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.Linear(512, 256))
    on_gpu, on_cpu = (st.analyze(model, device=device).table for device in ("cuda", "cpu"))
    np.testing.assert_allclose(on_gpu["alpha"], on_cpu["alpha"], rtol=1e-4)
    np.testing.assert_allclose(on_gpu["lambda_max"], on_cpu["lambda_max"], rtol=1e-5)
