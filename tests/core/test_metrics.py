"""Numbers of the whole matrix against dense solvers, at every shape and scale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from spectail.core import metrics
from spectail.core.metrics import entropy, largest_eigenvalue, moments

SHAPES = [
    (1, 40, 40),
    (1, 20, 900),
    (1, 900, 20),
    (1, 300, 200),
    (1, 150, 700),
    (9, 64, 32),
    (3, 200, 140),
    (1, 1, 50),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.complex128]


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    rng = np.random.default_rng(shape)
    values = rng.standard_t(4, shape) + (1j * rng.standard_t(4, shape) if dtype.is_complex else 0)
    return torch.from_numpy(values).to(dtype)


def dense(matrices: torch.Tensor) -> float:
    wide = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64).numpy()
    return max(float(np.linalg.svd(matrix, compute_uv=False)[0]) ** 2 for matrix in wide)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_largest_eigenvalue_is_that_of_the_svd(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    matrices = draw(shape, dtype)
    before = matrices.clone()
    assert largest_eigenvalue(matrices) == pytest.approx(dense(matrices), rel=1e-8)
    assert torch.equal(matrices, before)


@pytest.mark.parametrize("scale", [1e-120, 1e-30, 1e-8, 1e8, 1e30, 1e120])
@pytest.mark.parametrize("shape", [(1, 40, 60), (1, 200, 300)], ids=str)
def test_the_largest_eigenvalue_follows_the_scale(shape: tuple[int, ...], scale: float) -> None:
    matrices = draw(shape)
    assert largest_eigenvalue(matrices * scale) / scale**2 == pytest.approx(
        dense(matrices), rel=1e-8
    )


SPECIAL = {
    "rank one": lambda: torch.outer(torch.arange(1.0, 301), torch.arange(1.0, 201)).double()[None],
    "identity": lambda: torch.eye(300).double()[None],
    "near tie": lambda: torch.diag(torch.linspace(0.999999, 1, 300).double())[None],
    "one entry": lambda: torch.nn.functional.pad(torch.ones(1, 1, 1).double(), (0, 199, 299, 0)),
    "one large row": lambda: torch.cat([draw((1, 1, 200)) * 1e6, draw((1, 299, 200))], dim=1),
    "zeros beside": lambda: torch.stack([torch.zeros(200, 200).double(), draw((200, 200))]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("kind", SPECIAL)
def test_the_largest_eigenvalue_of_special_matrices(kind: str, dtype: torch.dtype) -> None:
    """In float32 the iteration stops early, which shows only where the largest
    eigenvalues are nearly equal."""
    matrices = SPECIAL[kind]().to(dtype)
    tolerance = 1e-7 if kind == "near tie" and dtype == torch.float32 else 1e-8
    assert largest_eigenvalue(matrices) == pytest.approx(dense(matrices), rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("scale", [1e-38, 1e-40, 1e-43])
def test_the_largest_eigenvalue_of_weights_below_the_normal_numbers(
    scale: float, dtype: torch.dtype
) -> None:
    """Weight decay takes weights that get no gradient there."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    matrices = (draw((1, 150, 200), wide) * scale).to(dtype)
    assert largest_eigenvalue(matrices) == pytest.approx(dense(matrices), rel=1e-8)
    assert largest_eigenvalue(matrices, rough=True) == pytest.approx(dense(matrices), rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1100, 1300), (1, 2100, 1050)], ids=str)
def test_the_largest_eigenvalue_of_a_matrix_too_large_for_its_gram(shape: tuple[int, ...]) -> None:
    matrices = draw(shape, torch.float32)
    assert largest_eigenvalue(matrices) == pytest.approx(dense(matrices), rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(1, 200, 300), (3, 400, 150), (1, 1030, 1030)], ids=str)
def test_a_rough_largest_eigenvalue_is_off_by_less_than_a_hundredth(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Independent entries are the hardest case: no eigenvalue stands out."""
    matrices = draw(shape, dtype)
    known = dense(matrices)
    assert 0.99 * known < largest_eigenvalue(matrices, rough=True) < 1.000001 * known
    spiked = matrices + 0.2 * matrices[:, :, :1] @ matrices[:, :1]
    assert largest_eigenvalue(spiked, rough=True) == pytest.approx(dense(spiked), rel=1e-3)


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_rough_largest_eigenvalue_of_special_matrices(kind: str) -> None:
    matrices = SPECIAL[kind]()
    assert largest_eigenvalue(matrices, rough=True) == pytest.approx(dense(matrices), rel=0.01)


@pytest.mark.parametrize(
    "top", [(1.05, 1.0), (1.3, 1.0), (9.0, 8.2), (30.0, 27.0), (5.0, 4.9, 4.2)]
)
@pytest.mark.parametrize("bulk", ["equal", "even"])
def test_a_rough_largest_eigenvalue_is_not_the_second_largest(
    top: tuple[float, ...], bulk: str
) -> None:
    """After few steps the residual of another eigenvalue may be small, by the chance of the start
    vector."""
    n, worst = 200, 0.0
    values = np.ones(n) if bulk == "equal" else np.linspace(0.1, 1, n)
    values[: len(top)] = top
    for seed in range(25):
        rng = np.random.default_rng((seed, n))
        left = np.linalg.qr(rng.standard_normal((n, n)))[0]
        matrix = torch.from_numpy((left * np.sqrt(values)).astype(np.float32))
        found = largest_eigenvalue(matrix[None], rough=True)
        worst = max(worst, abs(found / top[0] - 1))
    assert worst < 0.01


def test_a_rough_largest_eigenvalue_takes_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []

    two_products = metrics._two_products

    def counted(scaled: Any) -> Any:
        def multiply(vector: np.ndarray) -> np.ndarray:
            passes.append(1)
            product: np.ndarray = two_products(scaled)(vector)
            return product

        return multiply

    monkeypatch.setattr(metrics, "_two_products", counted)
    monkeypatch.setattr(metrics, "_GRAM_SIDE", 0)
    matrices = draw((1, 600, 900), torch.float32)
    largest_eigenvalue(matrices, rough=True)
    rough = len(passes)
    largest_eigenvalue(matrices)
    assert rough <= 20
    assert len(passes) - rough > 1.5 * rough


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_are_the_variance_and_the_sum_of_squares(dtype: torch.dtype) -> None:
    matrices = draw((3, 50, 70), dtype) + 2
    wide = matrices.to(torch.complex128 if dtype.is_complex else torch.float64).numpy()
    variance, squares = moments(matrices)
    assert variance == pytest.approx(np.mean(np.abs(wide - wide.mean()) ** 2), rel=1e-9)
    assert squares == pytest.approx(np.sum(np.abs(wide) ** 2), rel=1e-9)
    singular = np.linalg.svd(wide, compute_uv=False)
    assert squares == pytest.approx(np.sum(singular**2), rel=1e-9)


def test_moments_read_in_pieces_are_those_of_the_whole() -> None:
    matrices = (
        torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2100, 2050))).float() + 1000
    )
    variance, squares = moments(matrices)
    wide = matrices.double().numpy()
    assert variance == pytest.approx(wide.var(), rel=1e-9)
    assert squares == pytest.approx((wide**2).sum(), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
def test_entropy_is_one_for_equal_eigenvalues_and_falls_from_there(scale: float) -> None:
    assert entropy(np.full(7, scale)) == pytest.approx(1)
    shares = np.array([1.0, 2.0, 3.0]) / 6
    assert entropy(np.array([1.0, 2.0, 3.0]) * scale) == pytest.approx(
        -np.sum(shares * np.log(shares)) / math.log(3)
    )
    assert entropy(np.array([1e-12, 1.0]) * scale) < 1e-9


def test_entropy_counts_only_what_is_there() -> None:
    assert entropy(np.array([0.0, 0.0, 2.0, 2.0])) == pytest.approx(1)
    assert math.isnan(entropy(np.array([0.0, 5.0])))
