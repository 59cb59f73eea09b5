"""presets.WEIGHTWATCHER against the formulas of WeightWatcher 0.7.7, written out with NumPy.

``python -m benchmarks agreement`` compares with WeightWatcher itself.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import spectail as st
from spectail.core.weightwatcher import small_sample_fit

SPEC = st.presets.WEIGHTWATCHER


def _oracle(slices: NDArray[np.float64], factor: float) -> dict[str, float]:
    """All columns of one layer from the singular values of its matrices."""
    values = np.array([np.linalg.svd(math.sqrt(factor) * w, compute_uv=False) for w in slices])
    longest, eps = max(slices.shape[1:]), np.finfo(float).eps
    pool = np.sort((values**2).ravel())
    fitted = pool[pool > 1e-5]
    best = (math.inf, math.nan, math.nan, 0)
    small = fitted.size < 20
    for start in range(fitted.size - 1):
        tail = fitted[start:]
        n = tail.size
        if small and n < 8 and start > 0:
            continue
        alpha = 1 + (n - 1 if small else n) / np.log(tail / tail[0]).sum()
        distance = np.abs(1 - (tail / tail[0]) ** (1 - alpha) - np.arange(n) / n).max()
        best = min(best, (distance, alpha, tail[0], n))
    ks, alpha, xmin, n_tail = best
    shares = pool / pool.sum()
    rank = (values > values.max() * longest * eps).sum()
    return {
        "alpha": alpha,
        "xmin": xmin,
        "ks": ks,
        "n_tail": n_tail,
        "lambda_max": pool[-1],
        "frobenius_norm_sq": pool.sum(),
        "stable_rank": pool.sum() / pool[-1],
        "log_norm": math.log10(pool.sum()),
        "log_spectral_norm": math.log10(pool[-1]),
        "alpha_weighted": alpha * math.log10(pool[-1]),
        "log_alpha_norm": math.log10((pool**alpha).sum()),
        "rank_loss": sum((v <= v.max() * longest * eps).sum() for v in values),
        "matrix_rank": rank,
        "entropy": -(shares[shares > 0] * np.log(shares[shares > 0])).sum() / math.log(rank),
    }


def _rank_deficient() -> torch.Tensor:
    left, right = torch.randn(80, 30).double(), torch.randn(30, 60).double()
    return left @ right


CASES: dict[str, tuple[Callable[[], Any], float]] = {
    "a stem of 7 x 7 with three channels": (lambda: nn.Conv2d(3, 16, 7), 0.5),
    "a depth-wise convolution": (lambda: nn.Conv2d(32, 32, 3, groups=32), 0.5),
    "a convolution of one position": (lambda: nn.Conv2d(40, 64, 1), 0.5),
    "a linear layer": (lambda: nn.Linear(60, 90), 1.0),
    "a narrow layer, fitted by the formula for few": (lambda: nn.Linear(12, 50), 1.0),
    "an embedding": (lambda: nn.Embedding(300, 24), 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_every_column_is_weightwatchers(case: str) -> None:
    make, factor = CASES[case]
    torch.manual_seed(3)
    layer = make()
    with torch.no_grad():
        layer.weight *= torch.randn_like(layer.weight).exp()
    row = st.analyze(nn.Sequential(layer), spec=SPEC).table.iloc[0]
    weight = layer.weight.detach().double().numpy()
    slices = weight.reshape(*weight.shape[:2], -1).transpose(2, 0, 1)
    expected = _oracle(slices, factor)
    assert row["status"] == "ok", row["reason"]
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-9)


def test_the_rank_of_a_deficient_layer_is_that_of_numpy() -> None:
    torch.manual_seed(0)
    matrix = _rank_deficient()
    row = st.analyze({"a.weight": matrix}, spec=SPEC).table.iloc[0]
    assert row["matrix_rank"] == np.linalg.matrix_rank(matrix.numpy()) == 30
    assert row["rank_loss"] == 30
    expected = _oracle(matrix.numpy()[None], 1.0)
    for column in ("alpha", "entropy", "log_alpha_norm", "frobenius_norm_sq"):
        assert row[column] == pytest.approx(expected[column], rel=1e-9), column


def test_small_eigenvalues_count_for_the_norms_and_not_for_the_fit() -> None:
    matrix = torch.diag(torch.logspace(-5, 0, 40, dtype=torch.float64))
    row = st.analyze({"a.weight": matrix}, spec=SPEC).table.iloc[0]
    squares = np.logspace(-5, 0, 40) ** 2
    assert row["n_zero"] == (squares <= 1e-5).sum() == 20
    assert row["frobenius_norm_sq"] == pytest.approx(squares.sum(), rel=1e-12)
    assert row["matrix_rank"] == 40
    assert row["log_alpha_norm"] == pytest.approx(math.log10((squares ** row["alpha"]).sum()))


def test_a_layer_below_the_threshold_fails_with_the_reason() -> None:
    torch.manual_seed(0)
    row = st.analyze({"a.weight": 1e-6 * torch.randn(40, 40)}, spec=SPEC).table.iloc[0]
    assert row["status"] == "failed"
    assert row["reason"] == "no eigenvalue is above 1e-05, WeightWatcher's threshold"


@pytest.mark.parametrize(
    ("shape", "count"), [((7, 90), 7), ((1, 1, 7), 7), ((3, 3, 1, 2), 6), ((5, 5), 5)]
)
def test_fewer_than_8_eigenvalues_are_skipped(shape: tuple[int, ...], count: int) -> None:
    torch.manual_seed(0)
    state = {"a.weight": torch.randn(shape), "b.weight": torch.randn(8, 8)}
    table = st.analyze(state, spec=SPEC).table.set_index("name")
    assert table.loc["b", "status"] == "ok"
    assert table.loc["a", "status"] == "skipped"
    assert table.loc["a", "reason"] == (
        f"too small: {count} eigenvalues, WeightWatcher needs at least 8"
    )


def test_equal_eigenvalues_have_no_exponent() -> None:
    assert small_sample_fit(np.ones(10)).alpha == math.inf
    row = st.analyze({"a.weight": torch.eye(12)}, spec=SPEC).table.iloc[0]
    assert (row["status"], math.isnan(row["alpha"])) == ("failed", True)
    # One eigenvalue, and others whose share of the sum vanishes in double precision.
    row = st.analyze({"a.weight": torch.ones(30, 30)}, spec=SPEC).table.iloc[0]
    assert "divide" not in row["reason"]
    assert (row["matrix_rank"], row["rank_loss"]) == (1, 29)


def test_the_setting_survives_a_file_and_is_checked() -> None:
    assert st.Spec(**SPEC.to_dict()) == SPEC
    with pytest.raises(st.SpecError, match="legacy must be True, False or 'weightwatcher', not 1"):
        st.Spec(legacy=1)  # type: ignore[arg-type]
    with pytest.raises(st.SpecError, match="not 'ww'"):
        st.Spec(legacy="ww")


def test_columns_without_the_whole_spectrum_are_empty() -> None:
    torch.manual_seed(0)
    state = {"a.weight": torch.randn(128, 96)}
    row = st.analyze(state).table.iloc[0]
    assert row["log_spectral_norm"] == pytest.approx(math.log10(row["lambda_max"]))
    assert row[["log_alpha_norm", "rank_loss", "matrix_rank"]].isna().all()
    full = st.analyze(state, full_spectrum=True).table.iloc[0]
    squares = np.linalg.svd(state["a.weight"].double().numpy(), compute_uv=False) ** 2
    assert full["log_alpha_norm"] == pytest.approx(math.log10((squares ** full["alpha"]).sum()))
    assert (full["matrix_rank"], full["rank_loss"]) == (96, 0)
