"""Eigenvalues and tail fits of matrices on a GPU are those of the same matrices on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import spectail as st
from spectail import presets
from spectail.core import cuda
from spectail.core.metrics import largest_eigenvalue, moments
from spectail.core.quantisers import QUANTISERS, group_range, relative_error
from spectail.core.spectra import window_eigenvalues
from spectail.core.traps import find_traps
from spectail.core.windows import Grid, Tile, Window
from tests.cuda.device import DEVICE, needs_device, needs_gpu

pytestmark = needs_device


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64],
    ids=str,
)
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((1, 40, 40), Window(17, 17)),
        ((1, 200, 130), Window(32, 32)),
        ((3, 90, 120), Window(30, 40)),
        ((2, 120, 90), Window(60, 33)),
        ((1, 300, 700), Window(300, 300)),
        ((1, 600, 600), Window(520, 520)),
    ],
    ids=str,
)
def test_eigenvalues_of_windows(
    shape: tuple[int, ...], window: Window, dtype: torch.dtype, exact: bool
) -> None:
    matrices = draw(*shape, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    positions = Grid(3).positions(shape[1], shape[2], window)
    found = window_eigenvalues(matrices.to(DEVICE), window, positions, exact_zeros=exact)
    expected = window_eigenvalues(matrices, window, positions, exact_zeros=exact)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13 * expected.max())


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
def test_extreme_weights_in_float64(scale: float) -> None:
    matrix = draw(1, 100, 100, dtype=torch.float64) * scale
    found = window_eigenvalues(matrix.to(DEVICE), Window(64, 64), [(0, 0), (36, 36)])
    expected = window_eigenvalues(matrix, Window(64, 64), [(0, 0), (36, 36)])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13 * expected.max())


@pytest.mark.parametrize(
    "view",
    [
        lambda m: m.mT,
        lambda m: m[:, ::2, 1:],
        lambda m: m.permute(1, 2, 0)[:, :, :1].permute(2, 0, 1),
        lambda m: m.conj().mT if m.is_complex() else m.flip(-1),
    ],
)
def test_views_in_another_order(view: Any) -> None:
    for dtype in (torch.float32, torch.complex64):
        matrices = view(draw(3, 160, 160, dtype=dtype))
        moved = view(draw(3, 160, 160, dtype=dtype).to(DEVICE))
        positions = Tile().positions(matrices.shape[1], matrices.shape[2], Window(48, 48))
        np.testing.assert_allclose(
            window_eigenvalues(moved, Window(48, 48), positions),
            expected := window_eigenvalues(matrices, Window(48, 48), positions),
            rtol=1e-9,
            atol=1e-13 * expected.max(),
        )
        assert moments(moved) == pytest.approx(moments(matrices), rel=1e-12)


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("shape", [(1, 100, 90), (9, 64, 64), (1, 400, 900), (1, 1500, 1200)])
def test_largest_eigenvalue(shape: tuple[int, ...], dtype: torch.dtype, rough: bool) -> None:
    matrices = draw(*shape, dtype=torch.complex64 if dtype.is_complex else torch.float32).to(dtype)
    found = largest_eigenvalue(matrices.to(DEVICE), rough=rough)
    assert found == pytest.approx(largest_eigenvalue(matrices, rough=rough), rel=1e-6)


@needs_gpu
def test_reduced_precision_of_products_changes_no_result() -> None:
    matrix = draw(1, 1500, 1200)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = largest_eigenvalue(matrix.to(DEVICE))
    finally:
        torch.set_float32_matmul_precision(before)
    assert found == pytest.approx(largest_eigenvalue(matrix), rel=1e-6)


def test_moments_of_a_large_mean() -> None:
    matrix = draw(1, 500, 5000) + 1000
    assert moments(matrix.to(DEVICE)) == pytest.approx(moments(matrix), rel=1e-10)


SPECS = {
    **presets.BY_NAME,
    "ks": st.Spec(cutoff="ks"),
    "peak": st.Spec(cutoff="peak"),
    "fixed": st.Spec(cutoff="fixed:30"),
    "grid": st.Spec(window=100, placement="grid:5"),
    "step": st.Spec(window=64, placement="step:30"),
    "random": st.Spec(window=64, placement="random:40"),
    "fit": st.Spec(window="fit"),
    "ratio": st.Spec(window=64, aspect_ratio=2.0),
    "tolerance": st.Spec(window=64, placement="grid:9", tolerance=0.05),
}


@pytest.mark.parametrize("name", SPECS)
def test_tail_fits(name: str) -> None:
    spec = SPECS[name]
    matrix = torch.from_numpy(np.random.default_rng(3).standard_t(3, (500, 340)).astype("f4"))
    found, expected = (
        st.tail_fit(m, replace(spec, window=300) if spec.window == 2000 else spec)
        for m in (matrix.to(DEVICE), matrix)
    )
    for field in ("status", "n_tail", "n_zero", "rank", "rank_loss", "n_windows", "window"):
        assert getattr(found, field) == getattr(expected, field), field
    for field in ("alpha", "alpha_se", "xmin", "ks", "alpha_null", "weight_var", "sum_of_squares"):
        assert getattr(found, field) == pytest.approx(
            getattr(expected, field), rel=1e-8, nan_ok=True
        ), field


@pytest.mark.parametrize("rank", [1, 5, 40, 99])
@pytest.mark.parametrize("window", [50, "whole"])
def test_zeros_of_a_matrix_of_low_rank_are_counted_alike(rank: int, window: Any) -> None:
    matrix = (draw(100, rank) @ draw(rank, 130, seed=1)).double()
    found, expected = (st.tail_fit(m, st.Spec(window=window)) for m in (matrix.to(DEVICE), matrix))
    assert (found.status, found.rank, found.n_zero) == (
        expected.status, expected.rank, expected.n_zero
    )  # fmt: skip


def test_traps_are_those_of_the_cpu() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.complex64):
        matrices = draw(2, 300, 280, dtype=torch.float32).to(dtype)
        matrices[0, 3, 5] = 60
        for window in (Window(100, 100), Window(200, 200)):
            positions = Tile().positions(300, 280, window)
            found, expected = (
                find_traps(m, window, positions) for m in (matrices.to(DEVICE), matrices)
            )
            assert found.n == expected.n > 0
            assert found.ratio == pytest.approx(expected.ratio, rel=1e-5)


@pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda q: q.name)
def test_errors_of_formats(quantiser: Any) -> None:
    matrices = draw(2, 64, 512) * draw(2, 64, 1, seed=1).exp()
    found, expected = (relative_error(quantiser, m) for m in (matrices.to(DEVICE), matrices))
    assert found == pytest.approx(expected, rel=1e-4)
    assert group_range(matrices.to(DEVICE)) == pytest.approx(group_range(matrices), rel=1e-9)


@contextmanager
def most_memory(megabytes: int) -> Iterator[None]:
    """Let this process take only so much more of the GPU's memory within the block."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(
        (torch.cuda.memory_reserved() + megabytes * 2**20) / whole
    )
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@needs_gpu
@pytest.mark.parametrize("exact", [False, True])
def test_windows_that_do_not_fit_together_are_solved_in_parts(exact: bool) -> None:
    matrix, window = draw(1, 900, 900), Window(300, 300)
    positions = Grid(12).positions(900, 900, window)
    moved = matrix.to(DEVICE)
    # Warm: the handles and work space of the libraries stay.
    window_eigenvalues(moved, window, positions[:2], exact_zeros=exact)
    with most_memory(64):  # all windows take 104 MB
        found = window_eigenvalues(moved, window, positions, exact_zeros=exact)
    expected = window_eigenvalues(matrix, window, positions, exact_zeros=exact)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-13 * expected.max())


@needs_gpu
def test_a_layer_that_does_not_fit_fails_alone() -> None:
    state = {"large": draw(5000, 5000), "small": draw(70, 70), "other": draw(90, 80)}
    spec = st.Spec(window="whole")
    # cuBLAS keeps 32 MB for every stream, from its first product on.
    for _ in range(3):
        st.analyze({f"l{i}": state["small"] for i in range(6)}, spec=spec, device=DEVICE)
    with most_memory(96):  # the large layer takes 100
        table = st.analyze(state, spec=spec, device=DEVICE).table.set_index("name")
    assert table.status.to_dict() == {"large": "failed", "small": "ok", "other": "ok"}
    assert table.reason["large"] == "the GPU's memory does not hold this layer: use --device cpu"
    again = st.analyze(state, spec=spec, device=DEVICE).table
    assert set(again.status) == {"ok"}


@needs_gpu
def test_many_windows_of_one_size_in_one_stack() -> None:
    matrix, window = draw(1, 700, 700), Window(16, 16)
    positions = Grid(100).positions(700, 700, window)
    found = cuda.stacked_eigenvalues(
        matrix.to(DEVICE), window, positions, scale=1.0, exact_zeros=False
    )
    expected = window_eigenvalues(matrix, window, positions)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-13 * expected.max())


@needs_gpu
def test_a_tail_fit_on_a_stream_waits_for_what_the_stream_computes() -> None:
    a, spec = (draw(2000, 2000, dtype=torch.float64) / 45).to(DEVICE), st.Spec(window=400)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        product = a
        for _ in range(40):
            product = product @ a
            product = product / product.abs().amax()
        found = st.tail_fit(product, spec)
    torch.cuda.synchronize()
    assert found.alpha == st.tail_fit(product, spec).alpha
