"""Laws of design section 5: what alpha must not see, and what it must tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spectail.core.measure import tail_fit
from spectail.core.spec import Spec

CUTOFFS = ["median", "ks", "peak", "top:0.1"]
PLACEMENTS = ["tile", "grid:4", "step:20"]


def draw(*shape: int, law: str = "student", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng((seed, *shape))
    return rng.standard_t(3, shape) if law == "student" else rng.standard_normal(shape)


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("power", [-200, -11, 1, 200])
def test_scaling_by_a_power_of_two_keeps_every_bit(power: int, cutoff: str) -> None:
    matrix = draw(150, 120)
    before, after = (
        tail_fit(m, Spec(window=40, cutoff=cutoff)) for m in (matrix, matrix * 2.0**power)
    )
    assert (after.alpha, after.ks, after.n_tail, after.n_zero) == (
        before.alpha,
        before.ks,
        before.n_tail,
        0,
    )
    assert after.alpha_se == before.alpha_se
    assert after.alpha_null == before.alpha_null
    assert after.xmin == before.xmin * 4.0**power


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("factor", [1e-9, 0.3, 3.0, 1e7])
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_scaling_leaves_alpha_as_it_is(factor: float, cutoff: str, dtype: type) -> None:
    matrix: Any = draw(150, 120).astype(dtype)
    scaled = matrix * dtype(factor) if dtype is np.float64 else matrix.astype(np.float64) * factor
    before, after = (tail_fit(m, Spec(window=40, cutoff=cutoff)) for m in (matrix, scaled))
    assert after.alpha == pytest.approx(before.alpha, rel=1e-6)


def test_a_fixed_xmin_does_see_the_scale() -> None:
    matrix, spec = draw(150, 120), Spec(window=40, cutoff="fixed:80")
    assert tail_fit(matrix * 1.5, spec).alpha != pytest.approx(
        tail_fit(matrix, spec).alpha, rel=1e-3
    )


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("shape", [(150, 120), (100, 330), (2, 90, 64)])
def test_the_transpose_has_the_same_alpha_at_ratio_one(
    shape: tuple[int, ...], placement: str, cutoff: str
) -> None:
    matrix = draw(*shape)
    spec = Spec(window=40, cutoff=cutoff, placement=placement)
    there, back = tail_fit(matrix, spec), tail_fit(np.swapaxes(matrix, -1, -2), spec)
    assert back.alpha == pytest.approx(there.alpha, rel=1e-6)
    assert back.alpha_se == pytest.approx(there.alpha_se, rel=1e-3, nan_ok=True)
    assert back.n_windows == there.n_windows


@pytest.mark.parametrize("cutoff", ["median", "top:0.1"])
def test_permuting_an_independent_matrix_moves_alpha_within_its_error(cutoff: str) -> None:
    """Both alphas have the error bar, hence the root of two."""
    matrix = draw(512, 512, law="gauss")
    spec = Spec(window=64, cutoff=cutoff)
    known = tail_fit(matrix, spec)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        moved = tail_fit(matrix[rng.permutation(512)][:, rng.permutation(512)], spec)
        assert abs(moved.alpha - known.alpha) < 3.5 * np.hypot(known.alpha_se, moved.alpha_se)


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize(
    ("shape", "side", "ratio"),
    [
        ((256, 256), 64, 1.0),
        ((192, 576), 96, 1.0),
        ((300, 200), 64, 1.5),
        ((256, 512), 64, 2.0),
        ((300, 300), 60, 0.75),
    ],
)
def test_a_gaussian_matrix_shows_the_null(
    shape: tuple[int, int], side: int, ratio: float, cutoff: str
) -> None:
    spec = Spec(window=side, aspect_ratio=ratio, cutoff=cutoff)
    fits = [tail_fit(draw(*shape, law="gauss", seed=seed), spec) for seed in range(6)]
    null, spread = fits[0].alpha_null, fits[0].alpha_null_sd
    assert abs(np.mean([fit.alpha for fit in fits]) - null) < 2 * spread
    assert np.sum([abs(fit.alpha - null) > 4 * spread for fit in fits]) <= 1


SHAPES = [(384, 384), (384, 768), (1536, 384), (384, 3072), (6144, 384)]


@pytest.mark.parametrize("law", ["gauss", "student"])
def test_one_law_in_every_shape_has_one_alpha_and_the_full_spectrum_has_not(law: str) -> None:
    matrices = [draw(*shape, law=law, seed=seed) for seed, shape in enumerate(SHAPES)]
    farms = np.array([tail_fit(matrix, Spec(window=64)).alpha for matrix in matrices])
    full = np.array([tail_fit(matrix, Spec(window="whole")).alpha for matrix in matrices])
    assert farms.max() / farms.min() < 1.02
    assert full.max() / full.min() > 1.5


def test_heavier_tails_have_a_smaller_alpha() -> None:
    rng = np.random.default_rng(0)
    alphas = [
        tail_fit(rng.standard_t(df, (256, 256)), Spec(window=64)).alpha for df in (1.5, 2.5, 5, 1e6)
    ]
    assert alphas == sorted(alphas)


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_the_same_input_gives_the_same_bits(cutoff: str) -> None:
    matrix = torch.from_numpy(draw(128, 128))
    spec = Spec(window=32, cutoff=cutoff, placement="random:9", seed=5)
    first, second = tail_fit(matrix, spec), tail_fit(matrix, spec)
    assert (first.alpha, first.alpha_null, first.n_tail) == (
        second.alpha,
        second.alpha_null,
        second.n_tail,
    )
    assert np.array_equal(first.eigenvalues, second.eigenvalues)
