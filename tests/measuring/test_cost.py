"""The estimated cost of a layer: counts worked out by hand, and what costs nothing."""

from typing import Any

import pytest
import torch

import spectail as st
from spectail.core import bands
from spectail.core.spectra import window_eigenvalues
from spectail.core.windows import Window
from spectail.measuring.cost import MEASURED, Cost, Rates, estimate
from spectail.models.source import Layer


def _layer(*shape: int, name: str = "a.weight", dtype: torch.dtype = torch.float32) -> Layer:
    [layer] = st.open_source({name: torch.zeros(shape, dtype=dtype)}).layers
    return layer


def test_tiles_that_divide_the_matrix_are_counted_once() -> None:
    cost = estimate(_layer(384, 256), st.Spec(), 64)
    # 6 x 4 windows; the error bar uses the same ones.
    assert cost.windows == 24
    assert cost.flops == pytest.approx(24 * (64**3 + 4 / 3 * 64**3))
    assert cost.tridiagonal == 24 * 64**2
    assert cost.weights == 384 * 256
    assert cost.bytes == 4 * 384 * 256


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((300, 256), st.Spec(window=64)),
        ((300, 256), st.Spec(window=64, cutoff="ks")),
        ((100, 90), st.Spec()),
        ((128, 96, 3, 3), st.Spec(placement="grid:3")),
        ((200, 300), st.Spec(window=64, aspect_ratio=2.0)),
        ((200, 300), st.Spec(window="whole")),
        ((128, 130), st.Spec(window=80, placement="step:7")),
    ],
    ids=str,
)
def test_the_windows_are_those_that_a_measurement_solves(
    shape: tuple[int, ...], spec: st.Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved = []

    def noted(matrices: torch.Tensor, window: Window, positions: list[Any], **options: Any) -> Any:
        solved.extend([window] * len(positions) * len(matrices))
        return window_eigenvalues(matrices, window, positions, **options)

    monkeypatch.setattr(bands, "window_eigenvalues", noted)
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    [layer] = st.open_source({"a.weight": weights}).layers
    run = st.analyze({"a.weight": weights}, spec=spec).run
    cost = estimate(layer, spec, run.window)
    assert cost.windows == len(solved)
    expected = sum(min(w) ** 2 * max(w) + 4 / 3 * min(w) ** 3 for w in solved)
    assert cost.flops == pytest.approx(expected)


def test_bytes_are_those_of_the_stored_type() -> None:
    assert estimate(_layer(128, 64, dtype=torch.bfloat16), st.Spec(), 64).bytes == 2 * 128 * 64


def test_kernel_positions_multiply_the_windows() -> None:
    flat, kernel = _layer(128, 64), _layer(128, 64, 3, 3)
    one, nine = (estimate(layer, st.Spec(), 64) for layer in (flat, kernel))
    assert kernel.n_matrices == 9
    assert nine.windows == 9 * one.windows


def test_a_tolerance_takes_few_windows_and_no_more_than_there_are() -> None:
    spec = st.Spec(tolerance=0.1)
    assert estimate(_layer(640, 640), spec, 64).windows == 6
    assert estimate(_layer(640, 640), spec, 64, expected=4).windows == 4
    # Three windows in one band: the error bar takes smaller ones in three bands of each side.
    cost = estimate(_layer(192, 64), spec, 64)
    assert cost.windows > 3
    assert cost.flops < 6 * (1 + 4 / 3) * 64**3
    assert (
        estimate(_layer(640, 640), st.Spec(), 64).reread
        > 2 * estimate(_layer(640, 640), spec, 64).reread
    ), "the largest eigenvalue is rough"


def test_the_full_spectrum_is_one_more_window_of_the_whole_matrix() -> None:
    layer = _layer(384, 256)
    plain = estimate(layer, st.Spec(), 64)
    full = estimate(layer, st.Spec(), 64, full_spectrum=True)
    assert full.windows == plain.windows + 1
    assert full.flops == pytest.approx(plain.flops + 256 * 256 * 384 + 4 / 3 * 256**3)
    assert (full.layers, full.weights, full.bytes) == (plain.layers, plain.weights, plain.bytes)
    assert full.memory > plain.memory


@pytest.mark.parametrize(
    ("layer", "spec"),
    [
        (_layer(8, 64), st.Spec()),
        (_layer(64, 64), st.Spec(window=80)),
        (_layer(64, 64, dtype=torch.int8), st.Spec()),
    ],
    ids=["too small", "window does not fit", "not readable"],
)
def test_a_layer_that_is_not_measured_costs_nothing(layer: Layer, spec: st.Spec) -> None:
    assert estimate(layer, spec, 64) == Cost()


def test_costs_add_up_and_memory_is_the_largest() -> None:
    a, b = (estimate(_layer(*shape), st.Spec(), 64) for shape in ((384, 256), (64, 64)))
    both = a + b
    assert (both.layers, both.windows) == (2, a.windows + b.windows)
    assert both.memory == max(a.memory, b.memory)
    assert both.seconds() == pytest.approx(a.seconds() + b.seconds())


def test_seconds_weigh_every_kind_of_work() -> None:
    cost = Cost(layers=1, weights=10, reread=100, windows=1000, tridiagonal=1e4, flops=1e5)
    assert cost.seconds(Rates(1, 1, 1, 1, 1, 1)) == 111111
    assert cost.seconds(Rates(0, 0, 0, 0, 0, 0.5)) == 50000
    assert cost.seconds(MEASURED) == cost.seconds() > 0
