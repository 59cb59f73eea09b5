"""Eigenvalues of windows against one SVD each; zeros; every kind of input, none of it touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spectail.core.measure import tail_fit
from spectail.core.spec import Spec
from spectail.core.spectra import numerical_zeros, shared_grams, window_eigenvalues
from spectail.core.threads import spread_over
from spectail.core.windows import Grid, RandomPlacement, Tile, Window
from tests.reference import plain_farms

SHAPES = [
    ((90, 70), Window(32, 32)),
    ((70, 90), Window(16, 40)),
    ((90, 70), Window(48, 20)),
    ((40, 40), Window(40, 40)),
]
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.complex128,
]


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape) + (
        1j * rng.standard_normal(shape) if dtype.is_complex else 0
    )
    return torch.from_numpy(values).to(dtype)


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).numpy()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("shape", "window"), SHAPES)
def test_eigenvalues_are_squared_singular_values(
    shape: tuple[int, int], window: Window, exact: bool, dtype: torch.dtype
) -> None:
    matrices = draw((2, *shape), dtype)
    before = matrices.clone()
    corners = Tile().positions(*shape, window)
    found = window_eigenvalues(matrices, window, corners, exact_zeros=exact)
    assert found.shape == (len(corners), 2, min(window))
    assert np.all(np.diff(found, axis=-1) >= 0)
    known = plain_farms.pooled_eigenvalues(list(as_numpy(matrices)), window, corners)
    assert np.sort(found, axis=None) == pytest.approx(known, rel=1e-9, abs=1e-13 * known[-1])
    one = plain_farms.pooled_eigenvalues([as_numpy(matrices)[1]], window, [corners[-1]])
    assert found[-1, 1] == pytest.approx(one, rel=1e-9, abs=1e-13 * one[-1])
    assert torch.equal(matrices, before)


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_and_threads_give_what_one_window_gives(threads: int) -> None:
    matrix = draw((1, 700, 500))
    corners = Tile().positions(700, 500, Window(96, 96))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = window_eigenvalues(matrix, Window(96, 96), corners * 6)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    alone = np.concatenate(
        [window_eigenvalues(matrix, Window(96, 96), [corner]) for corner in corners]
    )
    assert together == pytest.approx(np.concatenate([alone] * 6), rel=1e-10)


@pytest.mark.parametrize("side", [20, 72, 100, 192, 256, 264])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_a_window_has_the_same_bits_in_every_batch_and_on_any_number_of_threads(
    side: int, dtype: torch.dtype
) -> None:
    """MKL and OpenBLAS may both be at work; neither may let neighbours change a window's bits."""
    matrices = draw((1, side, 11 * side + 5), dtype)
    window = Window(side, side)
    positions = [(0, left) for left in range(0, 10 * side, side)]
    with spread_over(1):
        alone = [window_eigenvalues(matrices, window, [position])[0] for position in positions]
    for workers in (1, 2, 3):
        with spread_over(workers):
            together = window_eigenvalues(matrices, window, positions)
        assert np.array_equal(together, alone)


@pytest.mark.parametrize("power", [-300, -80, -1, 1, 80, 300])
def test_a_power_of_two_keeps_every_bit(power: int) -> None:
    matrix = draw((1, 90, 70))
    corners = Tile().positions(90, 70, Window(32, 32))
    plain, scaled = (
        window_eigenvalues(m, Window(32, 32), corners) for m in (matrix, matrix * 2.0**power)
    )
    assert np.array_equal(scaled, plain * 4.0**power)


@pytest.mark.parametrize("power", [-100, -20, 1, 60, 120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_a_power_of_two_keeps_every_bit_of_short_floats_too(dtype: torch.dtype, power: int) -> None:
    matrix = draw((1, 90, 140), dtype)
    corners = Tile().positions(90, 140, Window(70, 70))
    plain, scaled = (
        window_eigenvalues(m, Window(70, 70), corners) for m in (matrix, matrix * 2.0**power)
    )
    assert scaled.dtype == np.float64
    assert np.array_equal(scaled, plain * 4.0**power)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_float32_near_its_limits_neither_overflows_nor_vanishes(scale: float) -> None:
    matrix = draw((1, 40, 40), torch.float32)
    plain, scaled = (
        window_eigenvalues(m, Window(40, 40), [(0, 0)]) for m in (matrix, matrix * scale)
    )
    assert scaled / scale**2 == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("rank", [0, 1, 5, 20, 39])
@pytest.mark.parametrize("shape", [(40, 40), (40, 100), (100, 40)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_zeros_are_counted_exactly(rank: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    for seed in range(5):
        matrix = draw((shape[0], rank), dtype, seed) @ draw((rank, shape[1]), dtype, seed + 50)
        if rank:
            found = window_eigenvalues(matrix[None], Window(*shape), [(0, 0)])
            assert numerical_zeros(found, Window(*shape)).sum() == 40 - rank


def test_a_window_of_zeros_is_all_zero_and_a_full_one_has_none() -> None:
    matrix = draw((1, 40, 80))
    matrix[:, :, 40:] = 0
    found = window_eigenvalues(matrix, Window(40, 40), [(0, 0), (0, 40)])
    assert numerical_zeros(found, Window(40, 40)).sum(-1).tolist() == [[0], [40]]


def test_zeros_are_counted_in_each_window_by_its_own_scale() -> None:
    matrix = draw((1, 40, 80))
    matrix[:, :, 40:] *= 1e-12
    found = window_eigenvalues(matrix, Window(40, 40), [(0, 0), (0, 40)])
    assert numerical_zeros(found, Window(40, 40)).sum() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cutoff", ["median", "ks", "peak", "top:0.1", "fixed:3"])
def test_tail_fit_leaves_its_input_alone(dtype: torch.dtype, cutoff: str) -> None:
    matrix = draw((96, 80), dtype)
    before = matrix.clone()
    fit = tail_fit(matrix, Spec(window=32, cutoff=cutoff))
    assert torch.equal(matrix, before)
    assert fit.status == "ok"
    assert fit.eigenvalues.dtype == np.float64
    wide = tail_fit(
        before.to(torch.complex128 if dtype.is_complex else torch.float64),
        Spec(window=32, cutoff=cutoff),
    )
    assert fit.alpha == pytest.approx(wide.alpha, rel=1e-12)


ARRAYS: dict[str, Any] = {
    "float16": lambda a: a.astype(np.float16),
    "float32": lambda a: a.astype(np.float32),
    "Fortran order": np.asfortranarray,
    "every other row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "read-only": lambda a: _locked(a.copy()),
    "big-endian": lambda a: a.astype(">f8"),
    "long double": lambda a: a.astype(np.longdouble),
    "list of lists": lambda a: a.tolist(),
}


def _locked(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("kind", ARRAYS)
def test_tail_fit_takes_every_kind_of_array(kind: str) -> None:
    matrix = draw((80, 64)).numpy()
    known = tail_fit(matrix, Spec(window=32)).alpha
    assert tail_fit(ARRAYS[kind](matrix), Spec(window=32)).alpha == pytest.approx(known, rel=1e-2)


TENSORS: dict[str, Any] = {
    "transposed view": lambda t: t.mT.contiguous().mT,
    "wants a gradient": lambda t: t.clone().requires_grad_(),
    "a parameter": lambda t: torch.nn.Parameter(t.clone()),
    "a slice": lambda t: torch.cat([t, t])[: t.shape[0]],
    "conjugated later": lambda t: torch.complex(t, torch.zeros_like(t)).conj(),
    "negated later": lambda t: torch.complex(torch.zeros_like(t), t).conj().imag,
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tail_fit_takes_every_kind_of_tensor(kind: str) -> None:
    matrix = draw((80, 64))
    assert tail_fit(TENSORS[kind](matrix), Spec(window=32)).alpha == pytest.approx(
        tail_fit(matrix, Spec(window=32)).alpha, rel=1e-12
    )


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("lefts", [[3], [0, 7, 9, 40], [5, 5, 6], [0, 25, 50]])
def test_products_shared_by_overlapping_windows_are_those_of_each_window(
    lefts: list[int], dtype: type
) -> None:
    rng = np.random.default_rng(len(lefts))
    width, rows = 50, 12
    matrix: Any = rng.standard_normal((rows, 120)).astype(dtype)
    if dtype is np.complex128:
        matrix += 1j * rng.standard_normal(matrix.shape)
    matrix[:, lefts[0]] *= (
        1e8  # a large column that later windows do not have must leave nothing behind
    )
    grams: Any = np.empty((len(lefts), rows, rows), dtype)
    shared_grams(matrix[:, lefts[0] : lefts[-1] + width], lefts, width, out=grams)
    for left, gram in zip(lefts, grams, strict=True):
        columns = matrix[:, left : left + width]
        expected = columns @ columns.conj().T
        np.testing.assert_allclose(gram, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
def test_a_dense_grid_gives_the_eigenvalues_of_each_window_in_the_order_of_the_positions(
    shape: tuple[int, int],
) -> None:
    matrices = torch.from_numpy(np.random.default_rng(0).standard_normal((2, *shape)))
    window = Window(60, 90) if shape[1] > shape[0] else Window(90, 60)
    positions = Grid(9).positions(*shape, window)[::-1] + RandomPlacement(20).positions(
        *shape, window, 3
    )
    found = window_eigenvalues(matrices, window, positions)
    for place, (top, left) in enumerate(positions):
        cut = matrices[:, top : top + window.rows, left : left + window.cols]
        expected = torch.linalg.svdvals(cut).flip(-1) ** 2
        np.testing.assert_allclose(found[place], expected.numpy(), rtol=1e-9)
