"""The composition: windows of a run, statuses with their reasons, and what tail_fit refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from spectail.core.farms import MAX_SIDE
from spectail.core.measure import common_window, tail_fit
from spectail.core.spec import Spec
from spectail.core.windows import Tile, Window, window_shape
from spectail.errors import SpecError
from tests.reference import plain_farms

CUTOFFS = ["median", "ks", "peak", "top:0.1", "fixed:40"]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_t(5, shape)


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize(
    ("shape", "side", "ratio"),
    [
        ((96, 96), 32, 1.0),
        ((70, 130), 32, 1.0),
        ((130, 70), 24, 2.0),
        ((100, 80), 30, 0.75),
        ((3, 64, 48), 20, 1.5),
    ],
)
def test_tail_fit_is_the_plain_farms(
    shape: tuple[int, ...], side: int, ratio: float, cutoff: str
) -> None:
    matrix = draw(*shape)
    fit = tail_fit(matrix, Spec(window=side, aspect_ratio=ratio, cutoff=cutoff))
    rows, cols = shape[-2:]
    window = window_shape(rows, cols, side, ratio)
    corners = Tile().positions(rows, cols, window)
    slices = matrix.reshape(-1, rows, cols)
    known = plain_farms.fit(
        found := plain_farms.pooled_eigenvalues(list(slices), window, corners), cutoff
    )
    assert fit.eigenvalues == pytest.approx(found, rel=1e-8)
    assert (fit.alpha, fit.xmin, fit.ks, fit.n_tail) == pytest.approx(known, rel=1e-7)
    assert (fit.window, fit.n_windows, fit.n_zero) == (window, len(corners) * len(slices), 0)
    assert fit.status == "ok"
    assert fit.weight_var == pytest.approx(matrix.var(), rel=1e-12)
    assert fit.sum_of_squares == pytest.approx((matrix**2).sum(), rel=1e-12)


COMMON = [
    ([(100, 200), (300, 80), (500, 500)], {}, 80),
    ([(100, 200), (63, 900)], {}, 100),
    ([(2000, 3000)], {}, MAX_SIDE),
    ([(40, 40), (16, 9)], {}, None),
    ([], {}, None),
    ([(100, 150), (300, 80)], {"aspect_ratio": 2}, 75),
    ([(100, 200)], {"window": 48}, 48),
    ([(100, 200)], {"window": "fit"}, None),
    ([(100, 200)], {"window": "whole"}, None),
]


@pytest.mark.parametrize(("shapes", "settings", "expected"), COMMON)
def test_the_common_window_is_the_smallest_of_the_large(
    shapes: list[Any], settings: dict[str, Any], expected: int | None
) -> None:
    assert common_window(shapes, Spec(**settings)) == expected


def test_a_window_larger_than_every_layer_is_refused() -> None:
    with pytest.raises(SpecError) as error:
        common_window([(100, 200), (300, 80)], Spec(window=128))
    assert (
        str(error.value)
        == "a window of 128 is larger than every layer; the largest that fits any is 100"
    )


SIDES = [
    (Spec(), None, (60, 60)),
    (Spec(), 32, (32, 32)),
    (Spec(window="fit"), None, (60, 60)),
    (Spec(window="whole"), None, (60, 90)),
    (Spec(window=20, aspect_ratio=2), None, (20, 40)),
]


@pytest.mark.parametrize(("spec", "common", "shape"), SIDES)
def test_the_window_that_is_used(spec: Spec, common: int | None, shape: tuple[int, int]) -> None:
    matrix = draw(60, 90) if common is None else draw(80, 90)
    assert tail_fit(matrix, spec, window=common).window == shape


@pytest.mark.parametrize(
    ("ratio", "largest"), [(0.001, 0), (1000, 0), (0.05, 5), (30, 6), (1e-320, 0), (1e308, 0)]
)
def test_a_ratio_that_no_window_fits_is_named(ratio: float, largest: int) -> None:
    shape = (100, 200) if ratio < 1 else (200, 100)
    assert tail_fit(draw(*shape), Spec(aspect_ratio=ratio)).reason == (
        f"too small: matrices of {shape[0]} x {shape[1]}, a window needs a short side of at least "
        f"16, and the largest of aspect ratio {ratio:g} has {largest}"
    )


def test_a_small_layer_keeps_its_own_window_in_a_run() -> None:
    assert tail_fit(draw(40, 200), Spec(), window=96).window == Window(40, 40)


UNMEASURABLE = [
    (
        draw(15, 400),
        "skipped",
        "too small: matrices of 15 x 400, a window needs a short side of at least 16",
    ),
    (
        draw(1, 500),
        "skipped",
        "too small: matrices of 1 x 500, a window needs a short side of at least 16",
    ),
    (
        draw(0, 50),
        "skipped",
        "too small: matrices of 0 x 50, a window needs a short side of at least 16",
    ),
    (np.zeros((64, 64)), "failed", "all weights are zero"),
    (np.full((64, 64), np.nan), "failed", "4096 of 4096 weights are NaN or infinite"),
    (np.eye(64), "failed", "all eigenvalues of the tail are equal: no exponent describes them"),
    (np.ones((64, 64)), "skipped", "too small: 1 eigenvalues in the tail, a fit needs at least 5"),
    (
        draw(64, 6) @ draw(6, 64),
        "skipped",
        "too small: 3 eigenvalues in the tail, a fit needs at least 5",
    ),
]


@pytest.mark.parametrize(
    ("matrix", "status", "reason"), UNMEASURABLE, ids=lambda value: str(value)[:20]
)
def test_what_cannot_be_measured_says_why(matrix: np.ndarray, status: str, reason: str) -> None:
    fit = tail_fit(matrix, Spec(window="whole"))
    assert (fit.status, fit.reason) == (status, reason)
    assert math.isnan(fit.alpha)
    assert math.isnan(fit.alpha_se)
    assert fit.n_tail == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2],
    ids=str,
)
def test_one_bad_weight_fails_the_layer(value: float, dtype: torch.dtype) -> None:
    if dtype == torch.float8_e4m3fn:
        value = math.nan  # this type has no infinity
    matrix = torch.from_numpy(draw(64, 80))
    matrix[3, 4] = value
    fit = tail_fit(matrix.to(dtype))
    assert (fit.status, fit.reason) == ("failed", "1 of 5120 weights are NaN or infinite")


@pytest.mark.parametrize("rank", [12, 31, 32, 33, 63, 64])
def test_a_low_rank_is_counted_and_told(rank: int) -> None:
    fit = tail_fit(draw(64, rank) @ draw(rank, 64, seed=1), Spec(window="whole"))
    assert (fit.status, fit.n_zero, fit.eigenvalues.size) == ("ok", 64 - rank, rank)
    told = f"only {rank} of 64 eigenvalues are above numerical zero"
    assert (told in fit.reason) == (rank < 32)
    assert fit.n_tail == rank - rank // 2


@pytest.mark.parametrize(
    ("dtype", "zeros"), [(torch.float64, 52), (torch.float32, 52), (torch.bfloat16, 0)], ids=str
)
def test_a_low_rank_survives_storage_in_float32_but_not_in_bfloat16(
    dtype: torch.dtype, zeros: int
) -> None:
    """The rounding of float32 squares to less than the Gram route can tell from
    zero; that of bfloat16 is noise."""
    product = torch.from_numpy(draw(64, 12) @ draw(12, 64, seed=1)).to(dtype)
    assert tail_fit(product, Spec(window="whole")).n_zero == zeros


REFUSED = [
    (
        np.zeros(3),
        (
            "expected a matrix of floating-point numbers (2-D, or 3-D to pool), got torch.float64 "
            "of shape (3,)"
        ),
    ),
    (np.zeros((2, 2, 2, 2)), "got torch.float64 of shape (2, 2, 2, 2)"),
    (np.eye(64, dtype=int), "got int64 of shape (64, 64)"),
    (torch.zeros(64, 64, dtype=torch.bool), "got torch.bool of shape (64, 64)"),
    (5.0, "got torch.float64 of shape ()"),
]


@pytest.mark.parametrize(("matrix", "message"), REFUSED, ids=lambda value: str(value)[-20:])
def test_what_is_no_matrix_is_refused(matrix: object, message: str) -> None:
    with pytest.raises(SpecError) as error:
        tail_fit(matrix)  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.mark.parametrize("matrix", ["abc", None, [["a"]], np.array([[None, 1.0]])], ids=str)
def test_what_is_no_number_is_refused_too(matrix: object) -> None:
    with pytest.raises(SpecError, match="expected a matrix"):
        tail_fit(matrix)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
def test_a_window_that_does_not_fit_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(SpecError) as error:
        tail_fit(draw(*shape), Spec(window=61))
    assert str(error.value) == (
        f"a window of 61 x 61 does not fit into a matrix of {shape[0]} x {shape[1]}; "
        f"the largest short side that fits at aspect ratio 1 is 60"
    )


def test_a_common_window_makes_sense_only_for_common() -> None:
    with pytest.raises(
        SpecError, match="window=32 stands for the common window of a run, but the spec asks for 64"
    ):
        tail_fit(draw(96, 96), Spec(window=64), window=32)


def test_a_fixed_xmin_above_everything_leaves_no_tail() -> None:
    fit = tail_fit(draw(64, 64), Spec(window="whole", cutoff="fixed:1e9"))
    assert (fit.status, fit.reason) == (
        "skipped",
        "too small: 0 eigenvalues in the tail, a fit needs at least 5",
    )


@pytest.mark.parametrize("matrix", [np.repeat(np.eye(32)[None], 4, 0)], ids=["equal"])
def test_a_legacy_convolution_without_a_tail_fails_too(matrix: np.ndarray) -> None:
    assert tail_fit(matrix, Spec(window=16, legacy=True)).status != "ok"
