"""More of the published code: a small network through its learning-rate
set-up, and degenerate input.

On degenerate input the published code crashes, gives infinities or measures
something else without a word. Here every case gets a number that can be
trusted, a status with its reason, or a SpecError.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from spectail.core.measure import measure, tail_fit
from spectail.core.spec import Spec
from spectail.errors import SpecError
from tests.goldens import published

SHAPES = {
    "conv1": (16, 3, 3, 3),
    "conv2": (32, 16, 3, 3),
    "conv3": (64, 32, 1, 1),
    "fc1": (128, 64),
    "fc2": (96, 128),
    "fc3": (10, 96),
}
RATIO_LOST = [("fc3", True)]
"""64 x 64 windows in a layer of 10 rows: the image code takes what a
negative start leaves of them."""


def network() -> dict[str, np.ndarray]:
    """Weights drawn in order from one generator, N(0, 1) * sqrt(2 / fan_in)."""
    rng = np.random.default_rng(7)
    return {
        name: (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def layers() -> list[Any]:
    """(layer, whether windows were used, cutoff, alpha, number of
    eigenvalues) of every published run."""
    found = []
    for run in published.GOLDENS["tempbalance_cnn"]["runs"]:
        cutoff = published.CUTOFFS[run["pl_fitting"]]
        for name, alpha, count in zip(run["longname"], run["alpha"], run["eigs_num"], strict=True):
            windows = run["use_sliding_window"]
            if (name, windows) not in RATIO_LOST:
                found.append(
                    pytest.param(
                        name, windows, cutoff, alpha, count, id=f"{name}-{windows}-{cutoff}"
                    )
                )
    return found


@pytest.mark.parametrize(("name", "windows", "cutoff", "alpha", "count"), layers())
def test_a_network_gets_the_published_alphas(
    name: str, windows: bool, cutoff: str, alpha: float, count: int
) -> None:
    weights = network()[name]
    spec = Spec(window=64 if windows else "whole", placement="grid:5", cutoff=cutoff, legacy=True)
    slices = torch.from_numpy(published.kernel_slices(weights))
    ours = measure(slices, spec, convolution=weights.ndim == 4)
    assert ours.status == "ok"
    assert ours.eigenvalues.size + ours.n_zero == count
    assert ours.alpha == pytest.approx(alpha, rel=1e-5)


def _rng() -> np.random.Generator:
    return np.random.default_rng(11)


def _with(matrix: np.ndarray, value: float) -> np.ndarray:
    matrix[3, 4] = value
    return matrix


def _first_rows(count: int) -> np.ndarray:
    matrix = np.zeros((64, 64))
    matrix[:count] = _rng().standard_normal((count, 64))
    return matrix


def _pruned() -> np.ndarray:
    matrix = _rng().standard_normal((64, 64))
    matrix[np.abs(matrix) < np.median(np.abs(matrix))] = 0
    return matrix


DEGENERATE = {
    "zeros 32x32": lambda: np.zeros((32, 32)),
    "identity 32x32": lambda: np.eye(32),
    "exact rank 4, 64x64": lambda: (
        _rng().standard_normal((64, 4)) @ _rng().standard_normal((4, 64))
    ),
    "exact rank 4, filter_zeros": lambda: (
        _rng().standard_normal((64, 4)) @ _rng().standard_normal((4, 64))
    ),
    "4x4 (4 eigs)": lambda: _rng().standard_normal((4, 4)),
    "5x5 (5 eigs)": lambda: _rng().standard_normal((5, 5)),
    "1x50": lambda: _rng().standard_normal((1, 50)),
    "NaN entry 16x16": lambda: _with(_rng().standard_normal((16, 16)), math.nan),
    "Inf entry 16x16": lambda: _with(_rng().standard_normal((16, 16)), math.inf),
    "10 nonzero rows of 64": lambda: _first_rows(10),
    "50% magnitude-pruned 64x64": _pruned,
}
EXPECTED = {
    "zeros 32x32": ("failed", "all weights are zero"),
    "identity 32x32": (
        "failed",
        "all eigenvalues of the tail are equal: no exponent describes them",
    ),
    "exact rank 4, 64x64": (
        "skipped",
        "too small: 2 eigenvalues in the tail, a fit needs at least 5",
    ),
    "exact rank 4, filter_zeros": (
        "skipped",
        "too small: 2 eigenvalues in the tail, a fit needs at least 5",
    ),
    "4x4 (4 eigs)": (
        "skipped",
        "too small: matrices of 4 x 4, a window needs a short side of at least 16",
    ),
    "5x5 (5 eigs)": (
        "skipped",
        "too small: matrices of 5 x 5, a window needs a short side of at least 16",
    ),
    "1x50": (
        "skipped",
        "too small: matrices of 1 x 50, a window needs a short side of at least 16",
    ),
    "NaN entry 16x16": ("failed", "1 of 256 weights are NaN or infinite"),
    "Inf entry 16x16": ("failed", "1 of 256 weights are NaN or infinite"),
    "10 nonzero rows of 64": ("ok", "only 10 of 64 eigenvalues are above numerical zero"),
    "50% magnitude-pruned 64x64": ("ok", ""),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_a_degenerate_matrix_gets_a_status_and_a_reason(case: str) -> None:
    fit = tail_fit(DEGENERATE[case](), Spec(window="whole"))
    status, reason = EXPECTED[case]
    assert fit.status == status
    assert reason in fit.reason
    assert math.isfinite(fit.alpha) == (status == "ok")


@pytest.mark.parametrize("cutoff", ["median", "ks", "peak", "top:0.1", "fixed:0.5"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("case", DEGENERATE)
def test_no_cutoff_gives_nonsense_on_a_degenerate_matrix(
    case: str, legacy: bool, cutoff: str
) -> None:
    fit = tail_fit(DEGENERATE[case](), Spec(window="whole", cutoff=cutoff, legacy=legacy))
    if fit.status == "ok":
        assert 1 < fit.alpha < math.inf
        assert fit.n_tail >= 2
        assert math.isfinite(fit.ks)
    else:
        assert fit.status in ("skipped", "failed")
        assert fit.reason
        assert math.isnan(fit.alpha)


WINDOWED = [case for case in published.GOLDENS["edge_cases"] if "Q_ratio" in case["kw"]]


def _asked(case: dict[str, Any]) -> tuple[Any, ...]:
    asked = case["kw"]
    grid, step = asked["sampling_ops_per_dim"], asked.get("step_size")
    return (
        tuple(case["shape"]),
        asked["num_row_samples"],
        asked["Q_ratio"],
        f"grid:{grid}" if grid else f"step:{step}",
    )


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("asked", sorted({_asked(case) for case in WINDOWED}), ids=str)
def test_a_window_that_does_not_fit_never_changes_its_ratio(
    asked: tuple[Any, ...], legacy: bool
) -> None:
    shape, side, ratio, placement = asked
    matrix = _rng().standard_normal(shape).astype(np.float32)
    spec = Spec(window=side, aspect_ratio=ratio, placement=placement, legacy=legacy)
    try:
        fit = tail_fit(matrix, spec)
    except SpecError as refusal:
        assert f"into a matrix of {shape[0]} x {shape[1]}" in str(refusal)  # noqa: PT017
        return
    assert fit.status == "ok"
    short, long = sorted(fit.window)
    assert long == int(short * max(ratio, 1 / ratio) + 0.5)
    assert legacy or min(fit.window) == side


def test_every_degenerate_case_of_the_published_code_is_here() -> None:
    named = {case["case"] for case in published.GOLDENS["edge_cases"] if case not in WINDOWED}
    assert named - {"default arguments 576x576"} == set(DEGENERATE) == set(EXPECTED)
    assert json.dumps(WINDOWED)
