"""Quantisers: against other libraries, plain loops from the formats, and laws for all of them."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from spectail.core.quantisers import (
    QUANTISERS,
    Float8,
    Integers,
    KQuant,
    Nvfp4,
    Quantiser,
    SymmetricIntegers,
    group_range,
    quantiser_named,
    relative_error,
    rounding_errors,
)
from spectail.core.quantisers.base import sampled_rows
from spectail.errors import SpecError

gguf = pytest.importorskip("gguf")
ml_dtypes = pytest.importorskip("ml_dtypes")

ALL = pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda q: q.name)
NAMES = [quantiser.name for quantiser in QUANTISERS]


def _matrix(rows: int = 6, cols: int = 512, seed: int = 0, tail: float = 6.0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.distributions.StudentT(tail).sample((rows, cols)) * 0.03


def _half(x: float) -> float:
    return float(np.float16(x))


def _plain_integers(row: np.ndarray, bits: int, group: int) -> list[float]:
    """The nearest of 2^bits levels from the least to the largest, by trying all."""
    found = []
    for start in range(0, len(row), group):
        piece = row[start : start + group]
        step = _half((float(piece.max()) - float(piece.min())) / (2**bits - 1))
        levels = [_half(piece.min()) + step * k for k in range(2**bits)]
        found += [levels[int(np.abs(np.array(levels) - x).argmin())] for x in piece]
    return found


@pytest.mark.parametrize(("bits", "group"), [(1, 128), (2, 64), (3, 128), (4, 64), (6, 128)])
@pytest.mark.parametrize("cols", [128, 200, 7])
def test_integers_are_the_nearest_levels(bits: int, group: int, cols: int) -> None:
    matrix = _matrix(2, cols)
    found = Integers(bits, group).dequantised(matrix)
    for row, values in zip(matrix.numpy(), found.tolist(), strict=True):
        plain = _plain_integers(row, bits, group)
        # Ties between two levels may go either way: the errors are equal, not the levels.
        errors = [abs(abs(x - a) - abs(x - b)) for x, a, b in zip(row, values, plain, strict=True)]
        assert max(errors) < 1e-6


def test_integers_of_4_bits_in_groups_of_32_are_llama_cpps_q4_1() -> None:
    matrix = _matrix(8, 256)
    kind = gguf.GGMLQuantizationType.Q4_1
    theirs = gguf.dequantize(gguf.quantize(matrix.numpy(), kind), kind)
    ours = Integers(4, 32).dequantised(matrix).numpy()
    # gguf divides by the step before it rounds it to half precision, so that few levels differ.
    assert np.mean(np.abs(ours - theirs) > 1e-6) < 0.02
    error = float(((theirs - matrix.numpy()) ** 2).sum() / (matrix.numpy() ** 2).sum())
    assert relative_error(Integers(4, 32), matrix) == pytest.approx(error, rel=0.01)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    assert Integers(4, 32).storage(8, 256) == 8 * 256 // block * size * 8


@pytest.mark.parametrize("bits", [4, 8])
def test_symmetric_integers_are_torchs(bits: int) -> None:
    matrix = _matrix(3, 300)
    found = SymmetricIntegers(bits).dequantised(matrix)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for start in (0, 128, 256):
        piece = matrix[:, start : start + 128].contiguous()
        scales = (piece.abs().amax(1) / ((2**bits - 1) / 2)).half().float()
        zeros = torch.zeros(3, dtype=torch.int32)
        theirs = torch.fake_quantize_per_channel_affine(piece, scales, zeros, 0, low, high)
        torch.testing.assert_close(found[:, start : start + 128], theirs)


def test_fp8_is_that_of_ml_dtypes() -> None:
    matrix = _matrix(5, 77)
    scale = (matrix.abs().amax(1, keepdim=True) / 448).numpy()
    theirs = (matrix.numpy() / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    np.testing.assert_allclose(Float8().dequantised(matrix).numpy(), theirs, rtol=1e-6)


def test_nvfp4_is_that_of_ml_dtypes() -> None:
    matrix = _matrix(4, 64).numpy()
    whole = np.abs(matrix).max() / np.float32(448 * 6)
    blocks = matrix.reshape(4, 4, 16)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    scale = (largest / 6 / whole).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * whole
    theirs = np.clip(blocks / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    found = Nvfp4().dequantised(torch.from_numpy(matrix)).numpy()
    np.testing.assert_allclose(found, (theirs * scale).reshape(4, 64), rtol=1e-6, atol=1e-9)


def test_ties_of_4_bit_floats_go_to_even_codes() -> None:
    # One block whose scale is 1, so that the numbers in it are rounded as they are.
    ties = [6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, -0.75, -2.5, -5.0, 0.1, 4.9, -6.0, 0]
    matrix = torch.tensor([ties])
    expected = np.array(ties).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    found = Nvfp4().dequantised(matrix)[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-7)


K_QUANTS = {q.name: q for q in QUANTISERS if isinstance(q, KQuant)}


@pytest.mark.parametrize("name", K_QUANTS)
def test_k_quants_take_the_space_of_llama_cpps(name: str) -> None:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
    assert K_QUANTS[name].storage(3, 1024) == 3 * 1024 // block * size * 8


@pytest.mark.parametrize("name", K_QUANTS)
def test_k_quants_find_what_llama_cpp_stored(name: str) -> None:
    """Weights that some file of this type holds come back nearly as they are, unlike any others."""
    kind = gguf.GGMLQuantizationType[name.upper()]
    _, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 256, (8, size), dtype=np.uint8)
    # The half-precision scales lie at the end (Q2_K, Q3_K, Q6_K) or start (Q4_K, Q5_K) of a block.
    scales = np.array([0.01, 0.02], dtype=np.float16).view(np.uint8)
    if name in ("q4_k", "q5_k"):
        stored[:, :4] = scales
    elif name == "q2_k":
        stored[:, -4:] = scales
    else:
        stored[:, -2:] = scales[:2]
    matrix = torch.from_numpy(gguf.dequantize(stored, kind))
    other = torch.randn(8, 256)
    again, noise = (relative_error(K_QUANTS[name], x) for x in (matrix, other))
    assert again < 0.6 * noise


@pytest.mark.parametrize("name", K_QUANTS)
def test_k_quants_beat_integers_that_take_more_space(name: str) -> None:
    found = K_QUANTS[name]
    integers = Integers(found.bits, 64)
    matrix = _matrix(16, 1024)
    if found.storage(16, 1024) <= integers.storage(16, 1024) * 1.06:
        assert relative_error(found, matrix) < relative_error(integers, matrix)


@ALL
def test_the_error_is_that_of_the_values(quantiser: Quantiser) -> None:
    matrix = _matrix()
    values = quantiser.dequantised(matrix).double()
    expected = float((values - matrix).square().sum() / matrix.double().square().sum())
    assert relative_error(quantiser, matrix) == pytest.approx(expected, rel=1e-5)
    assert 0 < expected < 1


@ALL
def test_what_is_rounded_stays(quantiser: Quantiser) -> None:
    once = quantiser.dequantised(_matrix())
    assert relative_error(quantiser, once) < 0.3 * relative_error(quantiser, _matrix())


@ALL
def test_the_scale_of_weights_does_not_matter(quantiser: Quantiser) -> None:
    matrix = _matrix()
    error = relative_error(quantiser, matrix)
    assert relative_error(quantiser, matrix * 8) == pytest.approx(error, rel=0.01)


@ALL
def test_zeros_stay_zeros_and_the_input_is_untouched(quantiser: Quantiser) -> None:
    zeros = torch.zeros(3, 256)
    assert torch.equal(quantiser.dequantised(zeros), zeros)
    assert relative_error(quantiser, zeros) == 0.0
    matrix = _matrix()
    before = matrix.clone()
    quantiser.dequantised(matrix)
    assert torch.equal(matrix, before)


@ALL
def test_bits_per_weight_are_those_of_the_name_and_scales(quantiser: Quantiser) -> None:
    bits = quantiser.storage(64, 1024) / (64 * 1024)
    named = (
        8 if quantiser.name == "fp8" else int("".join(filter(str.isdigit, quantiser.name[:5]))[0])
    )
    assert named < bits <= named + 0.75


def test_more_bits_are_better_and_the_gain_is_not_4_per_bit() -> None:
    matrix = _matrix(64, 1024, tail=50.0)
    errors = [relative_error(Integers(bits), matrix) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    gains = [a / b for a, b in pairwise(errors)]
    # Step 2^b - 1 times in the range: (7/3)^2, (15/7)^2, ... down to 4.
    assert gains[0] == pytest.approx((7 / 3) ** 2, rel=0.05)
    assert gains[5] == pytest.approx((255 / 127) ** 2, rel=0.05)


def test_a_sample_of_rows_stands_for_a_large_layer() -> None:
    torch.manual_seed(1)
    matrix = torch.randn(4000, 512) * torch.rand(4000, 1).exp()
    sampled = {name: error for name, _, error in rounding_errors(matrix)}
    assert list(sampled) == NAMES
    for name in ("int2", "int4", "nvfp4", "fp8", "q3_k"):
        whole = relative_error(quantiser_named(name), matrix)
        assert sampled[name] == pytest.approx(whole, rel=0.02)


def test_a_small_layer_is_measured_whole_with_its_bits() -> None:
    kernels = torch.stack([_matrix(16, 96, seed) for seed in range(9)])
    found = {name: (bits, error) for name, bits, error in rounding_errors(kernels)}
    # Rows of 96 hold no super-block of 256.
    assert set(found) == {name for name in NAMES if name not in K_QUANTS}
    bits, error = found["int3"]
    assert bits == 3 + 32 / 96
    assert error == pytest.approx(relative_error(Integers(3), kernels), rel=1e-9)


def test_weights_that_a_format_cannot_hold_have_no_error_there() -> None:
    names = [name for name, _, _ in rounding_errors(_matrix() * 1e7)]
    assert "fp8" in names
    assert "nvfp4" in names
    assert "int4" not in names


@pytest.mark.parametrize("tail", [3.0, 5.0, 100.0])
@pytest.mark.parametrize("cols", [512, 200, 60])
def test_the_range_in_groups_tells_the_error_of_every_width(tail: float, cols: int) -> None:
    matrix = _matrix(200, cols, tail=tail)
    squares = float(matrix.double().square().sum())
    found = group_range(matrix[None])
    plain = 0.0
    for row in matrix.double().numpy():
        for start in range(0, cols, 128):
            piece = row[start : start + 128]
            plain += len(piece) * (piece.max() - piece.min()) ** 2
    assert found == pytest.approx(plain / squares, rel=1e-5)
    for bits in (2, 3, 4, 6, 8):
        error = relative_error(Integers(bits), matrix)
        assert found / (12 * (2**bits - 1) ** 2) == pytest.approx(error, rel=0.1)


def test_no_range_without_weights_that_differ_from_zero() -> None:
    assert math.isnan(group_range(torch.zeros(4, 8)))
    assert math.isnan(group_range(torch.ones(4, 8, dtype=torch.complex64)))
    assert group_range(torch.ones(4, 200)) == 0.0


def test_half_precision_does_not_underflow() -> None:
    matrix = _matrix(8, 256) * 1e-3
    assert group_range(matrix.half()) == pytest.approx(group_range(matrix), rel=1e-2)


@pytest.mark.parametrize("exponent", [-100, -75, 70, 110])
def test_errors_of_tiny_and_huge_weights_are_those_of_others_or_say_that_all_is_lost(
    exponent: int,
) -> None:
    """Squares of such weights leave the range of float32."""
    matrix = _matrix(8, 256)
    usual = {name: error for name, _, error in rounding_errors(matrix[None])}
    scaled = torch.ldexp(matrix, torch.tensor(exponent))
    found = {name: error for name, _, error in rounding_errors(scaled[None])}
    assert group_range(scaled) == pytest.approx(group_range(matrix), rel=1e-6)
    # A scale in float32 reaches them; one in half precision does not.
    for name in ("fp8", "nvfp4"):
        assert found.pop(name) == pytest.approx(usual[name], rel=1e-6)
    if exponent < 0:
        assert set(found.values()) == {1.0}
    else:
        assert found == {}


def test_formats_that_turn_weights_of_64_bits_into_zeros_lose_all_of_them() -> None:
    matrix = _matrix(8, 256).double()
    tiny = {error for _, _, error in rounding_errors(matrix[None] * 1e-140)}
    assert tiny == {1.0}
    assert list(rounding_errors(matrix[None] * 1e140)) == []
    for factor in (1e-140, 1e140):
        assert group_range(matrix * factor) == pytest.approx(group_range(matrix), rel=1e-6)


def test_a_large_or_transposed_layer_is_sampled_evenly() -> None:
    matrix = torch.arange(3 * 5000.0).reshape(3, 5000, 1).expand(3, 5000, 128)
    rows = sampled_rows(matrix)
    assert rows.shape == (1024, 128)
    assert rows[0, 0] == 0
    assert rows[-1, 0] == 14999
    steps = rows[:, 0].diff()
    assert steps.max() - steps.min() <= 1
    small = torch.randn(200, 30).T
    assert torch.equal(sampled_rows(small), small)
    assert sampled_rows(torch.randn(100, 20000)).shape == (64, 20000)


def test_spectral_weights_have_none() -> None:
    assert list(rounding_errors(torch.randn(4, 16, 16, dtype=torch.complex64))) == []


def test_names_are_unique_and_unknown_ones_are_refused() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert quantiser_named("w4a16") == SymmetricIntegers(4)
    with pytest.raises(SpecError, match=r"format must be one of int2, .*q6_k, not 'int9'"):
        quantiser_named("int9")
    assert all(math.isfinite(q.storage(3, 256)) for q in QUANTISERS)
