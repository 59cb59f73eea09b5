"""Integers of fewer than 8 bits, packed by a quantiser whose documentation gives the formula.

Each function checks whether shapes and types are those of its format and returns None if they are
not. Otherwise it describes the weight as (out, in). The weight is always (integer - zero point) *
scale, or integer * scale + bias, with one scale for each group of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spectail.models.assembly.bits import spread_groups, unpack, unpack_words
from spectail.models.assembly.eight_bit import EXPONENTS, scale_values
from spectail.models.assembly.four_bit_floats import MX_BLOCK, e2m1_values
from spectail.models.assembly.groups import (
    group_length,
    group_of_inputs,
    stated_lengths,
)
from spectail.models.assembly.pieces import Pieces, shape_text
from spectail.models.lazy_tensor import LazyTensor

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which 4 bits of a word hold its n-th column: AWQ stores the columns in the order 0, 2, 4, 6, 1,
3, 5, 7."""


def gptq(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight of GPTQ.

    The words are (in * bits / 32, out) and the scales (groups, out). Zero points are packed and
    optional; ``g_idx`` is the group of each input. Version 1 of the format stores zero points less
    one, version 2 stores them unchanged.
    """
    words, scales, zeros = pieces.anchor, pieces["{}.scales"], pieces.get("{}.qzeros")
    if words.dtype not in {"int32", "uint32"} or len(words.shape) != 2 or len(scales.shape) != 2:
        return None
    groups, outputs = scales.shape
    order = _order(pieces)
    bits = _gptq_bits(pieces)
    if words.shape[1] != outputs or bits is None:
        return None
    # g_idx has one entry per input; without it, assume words without empty bits.
    inputs = order.numel if order else words.shape[0] * 32 // bits
    # -(-a // b) rounds up: the last word may be partly empty.
    if -(-inputs * bits // 32) != words.shape[0] or (
        zeros and zeros.shape != (groups, -(-outputs * bits // 32))
    ):
        return None
    length = group_length(pieces.quantisation, inputs, groups)
    # With desc_act, the inputs of a group are no neighbours, and only g_idx tells them.
    is_scattered = groups > 1 and pieces.quantisation.get("desc_act") is True
    if order is None and (length is None or is_scattered):
        return _unclear(pieces, "GPTQ", (outputs, inputs), groups)
    version = _gptq_version(pieces)
    options = {"bits": bits, "inputs": inputs, "length": length, "first": 2 - version}
    return pieces.made((outputs, inputs), _gptq_values, words, scales, zeros, order, **options)


def _unclear(pieces: Pieces, form: str, shape: tuple[int, ...], groups: int) -> LazyTensor:
    """Describe a weight whose inputs cannot be assigned to their scales."""
    return pieces.failed(
        f"stored as packed integers ({form}), and which of {shape[-1]} inputs share one of "
        f"{groups} scales is not stated: open the model's folder, whose config.json has "
        "group_size, or dequantise it first",
        shape,
    )


def _order(pieces: Pieces, name: str = "{}.g_idx") -> LazyTensor | None:
    """Return the group of each input if the file states it; some files hold an empty tensor."""
    order = pieces.get(name)
    return order if order is not None and order.numel else None


def _gptq_bits(pieces: Pieces) -> int | None:
    """Return the number of bits, or None if it is unknown or not one of the format.

    It follows from the size of the packed zero points or the length of g_idx. Otherwise the
    configuration states it, and if it states several, only one goes with the group size.
    """
    scales, zeros, order = pieces["{}.scales"], pieces.get("{}.qzeros"), _order(pieces)
    # The packed zero points hold as many integers as there are scales.
    exact: float = 0
    if zeros is not None and scales.numel:
        exact = zeros.numel * 32 / scales.numel
    elif order is not None:
        exact = pieces.anchor.shape[0] * 32 / order.numel
    choices = {int(exact)} if exact else pieces.quantisation.stated("bits")
    choices &= {2, 3, 4, 8}
    if not exact and pieces.quantisation.stated("group_size"):
        rows, groups = pieces.anchor.shape[0], scales.shape[0]
        choices = {
            b for b in choices if stated_lengths(pieces.quantisation, rows * 32 // b, groups)
        }
    return choices.pop() if len(choices) == 1 else None


def _gptq_version(pieces: Pieces) -> int:
    """Return the version of the format, from the live module or the configuration; else 1."""
    zeros = pieces.get("{}.qzeros")
    if zeros is not None and zeros.layout == "gptq_v2":
        return 2
    said = pieces.quantisation
    second = (
        said.get("checkpoint_format") == "gptq_v2"
        or said.get("packing_format") == "auto_round:gptqmodel"
    )
    return 2 if second else 1


def _gptq_values(
    words: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    order: Tensor | None,
    *,
    bits: int,
    inputs: int,
    length: int | None,
    first: int,
) -> Tensor:
    """Decode GPTQ's layout; without zero points, the middle of the range stands for zero."""
    outputs = scales.shape[1]
    values = unpack(words.T, bits, inputs)
    if order is None:
        order = torch.arange(inputs, device=words.device) // (length or inputs)
    order = group_of_inputs(order, scales.shape[0])
    # Zero points less one wrap around, hence the mask.
    middle = torch.full_like(scales, 2 ** (bits - 1), dtype=torch.int32)
    points = middle if zeros is None else (unpack(zeros, bits, outputs) + first) & (2**bits - 1)
    return (values - points.T[:, order]).to(torch.float32) * scales.T.to(torch.float32)[:, order]


def awq(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight of AWQ in its "gemm" layout.

    The words are (in, out / 8), each with eight interleaved 4-bit columns; the scales are (groups,
    out).
    """
    words, scales, zeros = pieces.anchor, pieces["{}.scales"], pieces.get("{}.qzeros")
    if words.dtype != "int32" or len(words.shape) != 2 or len(scales.shape) != 2 or zeros is None:
        return None
    inputs, packed = words.shape
    groups, outputs = scales.shape
    if (packed * 8, zeros.shape) != (outputs, (groups, packed)):
        return None
    length = group_length(pieces.quantisation, inputs, groups)
    if length is None:
        return _unclear(pieces, "AWQ", (outputs, inputs), groups)
    return pieces.made((outputs, inputs), _awq_values, words, scales, zeros, length=length)


def _awq_values(words: Tensor, scales: Tensor, zeros: Tensor, *, length: int) -> Tensor:
    """Decode AWQ's layout."""
    # Eight columns per word, put back into their order.
    values, points = (
        unpack(t, 4, 8 * t.shape[1]).reshape(*t.shape, 8)[..., list(_AWQ_ORDER)].flatten(-2)
        for t in (words, zeros)
    )
    inputs = values.shape[0]
    by_input = [spread_groups(t.T, inputs, length) for t in (points, scales.to(torch.float32))]
    weight: Tensor = (values.T - by_input[0]) * by_input[1]
    return weight


def compressed_integers(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight of compressed-tensors in its "pack-quantized" layout.

    The words of each row hold unsigned integers. Zero points are packed along the output dimension.
    """
    words, scale, size = pieces.anchor, pieces["{}.*_scale"], pieces["{}.*_shape"]
    zeros, order = pieces.get("{}.*_zero_point"), _order(pieces, "{}.*_g_idx")
    if words.dtype != "int32" or len(words.shape) < 2 or size.problem:
        return None
    shape = tuple(int(n) for n in size.read(()).reshape(-1))
    # One scale for the whole tensor, or scales of every row.
    by_row = scale.numel != 1
    if (
        len(shape) != len(words.shape)
        or shape[:-1] != words.shape[:-1]
        or (by_row and scale.shape[:-1] != shape[:-1])
        or (order is not None and order.numel != shape[-1])
    ):
        return None
    # Several numbers of bits may fit the shapes; then the configuration decides.
    choices = _bit_choices(shape[-1], words.shape[-1])
    if len(choices) > 1:
        said = pieces.quantisation.stated("num_bits") | pieces.quantisation.stated("bits")
        choices = {choice for choice in choices if choice[0] in said}
    length = group_length(pieces.quantisation, shape[-1], scale.shape[-1] if by_row else 1)
    if len(choices) != 1:
        return pieces.failed(
            f"stored as packed integers (compressed-tensors), {shape_text(words.shape)} words for "
            f"{shape_text(shape)} weights with {shape_text(scale.shape)} scales, which does not "
            "tell the number of "
            "bits: open the model's folder with its config.json, or dequantise it first",
            shape,
        )
    if length is None:
        return _unclear(pieces, "compressed-tensors", shape, scale.shape[-1])
    bits, dense = choices.pop()
    if zeros is not None and not _zero_points_fit(zeros, scale, shape, bits, dense=dense):
        return pieces.failed(
            f"stored as packed integers (compressed-tensors), {shape_text(zeros.shape)} zero "
            f"points for {shape_text(scale.shape)} scales, which do not go together: dequantise "
            "it first",
            shape,
        )
    options = {"bits": bits, "dense": dense, "shape": shape, "length": length}
    return pieces.made(shape, _compressed_values, words, scale, zeros, order, **options)


def _bit_choices(count: int, words: int) -> set[tuple[int, bool]]:
    """List the numbers of bits that put ``count`` integers into this number of 32-bit words.

    Each choice also says whether the integers are dense (one may cross the end of a word) or each
    word holds whole integers only.
    """
    dense = {(bits, True) for bits in range(1, 9) if -(-count * bits // 32) == words}
    dense_bits = {bits for bits, _ in dense}
    # Numbers of bits that divide 32 never cross the end of a word, so there is one reading only.
    if dense_bits & {1, 2, 4, 8}:
        return dense
    return dense | {
        (b, False) for b in (3, 5, 6, 7) if b not in dense_bits and -(-count // (32 // b)) == words
    }


def _zero_points_fit(
    zeros: LazyTensor, scale: LazyTensor, shape: tuple[int, ...], bits: int, *, dense: bool
) -> bool:
    """Whether there is one zero point for each scale, as a number or packed along the outputs."""
    rows = shape[-2]
    words = -(-rows * bits // 32) if dense else -(-rows // (32 // bits))
    packed = (*scale.shape[:-2], words, *scale.shape[-1:])
    return zeros.shape == scale.shape or (zeros.dtype == "int32" and zeros.shape == packed)


def _compressed_values(
    words: Tensor,
    scale: Tensor,
    zeros: Tensor | None,
    order: Tensor | None,
    *,
    bits: int,
    dense: bool,
    shape: tuple[int, ...],
    length: int,
) -> Tensor:
    """Decode compressed-tensors' layout, which adds half the range to make integers unsigned."""
    rows, inputs = shape[-2:]
    decode = unpack if dense else unpack_words
    values = decode(words, bits, inputs).to(torch.float32)
    points = torch.full_like(scale, 2 ** (bits - 1), dtype=torch.float32)
    # Zero points come packed like the weight, or as plain signed numbers.
    if zeros is not None and zeros.dtype == torch.int32 and zeros.shape != scale.shape:
        points = decode(zeros.transpose(-1, -2), bits, rows).transpose(-1, -2).to(torch.float32)
    elif zeros is not None:
        points = points + zeros.to(torch.float32)
    factor = scale.to(torch.float32)
    # An order of -1 means that the file states none.
    if order is not None and int(order.max()) >= 0:
        chosen = group_of_inputs(order, factor.shape[-1])
        return (values - points[..., chosen]) * factor[..., chosen]
    return (values - spread_groups(points, inputs, length)) * spread_groups(factor, inputs, length)


def mlx(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight of MLX: integer * scale + bias, with both given per group of inputs.

    The words are (.., out, in * bits / 32). Without biases they hold 4-bit floats with an exponent
    for every 32 inputs (mode "mxfp4").
    """
    words, scales = pieces.anchor, pieces["{}.scales"]
    biases = pieces.only(("{}.biases", "{}.qbiases"))
    if words.dtype != "uint32" or words.shape[:-1] != scales.shape[:-1] or len(words.shape) < 2:
        return None
    if biases is None:
        shape = (*words.shape[:-1], words.shape[-1] * 8)
        fits = scales.dtype in EXPONENTS and scales.shape[-1] * 32 == shape[-1]
        return pieces.made(shape, _mlx_floats, words, scales) if fits else None
    # Every pair that gives as many integers as there are entries under the scales.
    pairs = {
        (bits, group)
        for bits in (2, 3, 4, 5, 6, 8)
        for group in (16, 32, 64, 128)
        if words.shape[-1] * 32 == scales.shape[-1] * group * bits
    }
    said = _mlx_settings(pieces)
    chosen = {pair for pair in pairs if said is None or pair == said}
    if biases.shape != scales.shape or len(chosen) != 1:
        return pieces.failed(
            f"stored as packed integers (MLX), {shape_text(words.shape)} words with "
            f"{shape_text(scales.shape)} scales, "
            f"which fits {len(pairs)} pairs of bits and group size: open the model's folder, "
            "whose config.json has both under quantization, or dequantise it first"
        )
    bits, group = chosen.pop()
    shape = (*words.shape[:-1], scales.shape[-1] * group)
    return pieces.made(shape, _mlx_values, words, scales, biases, bits=bits, group=group)


def _mlx_settings(pieces: Pieces) -> tuple[int, int] | None:
    """Read (bits, group size) of this module, or of all modules, from the configuration."""
    own = pieces.quantisation.get(pieces.module)
    said: Mapping[str, Any] = own if isinstance(own, Mapping) else pieces.quantisation
    bits, group = said.get("bits"), said.get("group_size")
    return (bits, group) if isinstance(bits, int) and isinstance(group, int) else None


def _mlx_values(words: Tensor, scales: Tensor, biases: Tensor, *, bits: int, group: int) -> Tensor:
    """Decode MLX's integers."""
    count = words.shape[-1] * 32 // bits
    values = unpack(words.view(torch.int32), bits, count).to(torch.float32)
    factor, shift = (
        spread_groups(by_group.to(torch.float32), count, group) for by_group in (scales, biases)
    )
    return values * factor + shift


def _mlx_floats(words: Tensor, scales: Tensor) -> Tensor:
    """Decode MLX's 4-bit floats."""
    values = e2m1_values(words.contiguous().view(torch.uint8))
    return values * spread_groups(scale_values(scales), values.shape[-1], MX_BLOCK)


def bitnet(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight of BitNet b1.58: values of -1, 0 or 1, and one scale for the tensor.

    A byte holds four values, whose rows are a quarter of the matrix apart. transformers'
    ``BitLinear`` divides by the scale; its ``AutoBitLinear`` multiplies.
    """
    packed, scale, said = pieces.anchor, pieces["{}.weight_scale"], pieces.quantisation
    is_bitnet = said.get("quant_method") == "bitnet" and math.prod(scale.shape) == 1
    if packed.dtype != "uint8" or len(packed.shape) != 2 or not is_bitnet:
        return None
    shape = (4 * packed.shape[0], packed.shape[1])
    return pieces.made(
        shape, _bitnet_values, packed, scale, divides=said.get("linear_class") != "autobitlinear"
    )


def _bitnet_values(packed: Tensor, scale: Tensor, *, divides: bool) -> Tensor:
    """Decode BitNet's layout."""
    # The codes 0, 1, 2 stand for -1, 0, 1.
    values = torch.cat([(packed >> shift) & 3 for shift in (0, 2, 4, 6)]).to(torch.float32) - 1
    return values / scale.float() if divides else values * scale.float()


def modelopt_int4(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight of ModelOpt's int4, with one scale for each group of inputs.

    The bytes are (out / 2, in) and hold two rows each, the even one in the low half.
    """
    packed, scale = pieces.anchor, pieces["{}.weight_scale"]
    two = len(packed.shape) >= 2 and len(scale.shape) == len(packed.shape)
    if (
        packed.dtype != "uint8"
        or not two
        or scale.dtype in EXPONENTS
        or scale.shape[-2] != 2 * packed.shape[-2]
    ):
        return None
    shape = (*packed.shape[:-2], 2 * packed.shape[-2], packed.shape[-1])
    if scale.shape[:-2] != shape[:-2]:
        return None
    length = group_length(pieces.quantisation, shape[-1], scale.shape[-1])
    if length is None:
        return _unclear(pieces, "ModelOpt int4", shape, scale.shape[-1])
    return pieces.made(shape, _modelopt_values, packed, scale, length=length)


def _modelopt_values(packed: Tensor, scale: Tensor, *, length: int) -> Tensor:
    """Decode signed 4-bit integers, of which a byte holds two rows."""
    rows = torch.stack((packed & 15, packed >> 4), dim=-2).flatten(-3, -2).to(torch.float32)
    # Two's complement of 4 bits.
    return torch.where(rows > 7, rows - 16, rows) * spread_groups(
        scale.to(torch.float32), rows.shape[-1], length
    )
