"""4-bit floats: MXFP4 and NVFP4 (e2m1 with a scale per block), and the 4-bit types of bitsandbytes.

An e2m1 number has a sign, two bits of exponent and one bit of mantissa (OCP Microscaling Formats
v1.0, section 5.3.3). A byte holds two numbers, the first in the low half; in bitsandbytes, the
first is in the high half.
"""

from __future__ import annotations

import math
from typing import Annotated, TypeAlias

import msgspec
import torch
from torch import Tensor

from spectail.basics.schema import Count, Finite, SchemaError, checked, parse_json
from spectail.models.assembly.eight_bit import EXPONENTS, scale_values
from spectail.models.assembly.pieces import Pieces, bytes_of, shape_text
from spectail.models.lazy_tensor import LazyTensor

_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Values of the codes 0 to 7; codes 8 to 15 have the opposite sign."""
E2M1 = torch.tensor([*_POSITIVE, *(-value for value in _POSITIVE)])
"""Value of each 4-bit code."""
MX_BLOCK, NV_BLOCK = 32, 16
_BYTES = frozenset({"uint8", "int8", "float4_e2m1fn_x2"})
"""Types of tensors that hold two numbers per entry."""


def mxfp4_experts(pieces: Pieces) -> LazyTensor | None:
    """Describe the experts of gpt-oss, stored as (experts, outputs, blocks, 16 bytes).

    The model uses them as (experts, inputs, outputs).
    """
    blocks, scales = pieces.anchor, pieces["{}.*_scales"]
    if not _are_mx_blocks(blocks, scales):
        return None
    *lead, outputs, count, _ = blocks.shape
    return pieces.made((*lead, count * MX_BLOCK, outputs), _mx_blocks_transposed, blocks, scales)


def mxfp4_blocks(pieces: Pieces) -> LazyTensor | None:
    """Describe the experts of gpt-oss in OpenAI's own files, ``.blocks`` and ``.scales``.

    The model uses them as (.., outputs, inputs).
    """
    blocks, scales = pieces.anchor, pieces["{}.*.scales"]
    if not _are_mx_blocks(blocks, scales):
        return None
    *lead, outputs, count, _ = blocks.shape
    return pieces.made((*lead, outputs, count * MX_BLOCK), _mx_blocks, blocks, scales)


def _are_mx_blocks(blocks: LazyTensor, scales: LazyTensor) -> bool:
    """Whether there is one exponent for each 16 bytes."""
    fits = blocks.shape[:-1] == scales.shape and blocks.shape[-1:] == (MX_BLOCK // 2,)
    return fits and len(blocks.shape) >= 3 and blocks.dtype == "uint8" and scales.dtype in EXPONENTS


def _mx_blocks(blocks: Tensor, scales: Tensor) -> Tensor:
    """Decode blocks and join those of a row."""
    return (e2m1_values(blocks) * scale_values(scales).unsqueeze(-1)).flatten(-2)


def _mx_blocks_transposed(blocks: Tensor, scales: Tensor) -> Tensor:
    """Decode blocks into (.., inputs, outputs)."""
    return _mx_blocks(blocks, scales).transpose(-1, -2)


def mxfp4(pieces: Pieces) -> LazyTensor | None:
    """Describe MXFP4 bytes (.., outputs, inputs / 2) with one exponent for every 32 inputs.

    compressed-tensors, Quark and DeepSeek store weights in this way.
    """
    packed, scale = pieces.anchor, next(iter(pieces.found.values()))
    if (
        packed.dtype not in _BYTES
        or scale.dtype not in EXPONENTS
        or not _has_blocks(packed, scale, MX_BLOCK)
    ):
        return None
    return pieces.made(
        (*packed.shape[:-1], 2 * packed.shape[-1]),
        _blocks_of_4_bits,
        packed,
        scale,
        None,
        divides=False,
    )


def nvfp4_divided(pieces: Pieces) -> LazyTensor | None:
    """Describe compressed-tensors' NVFP4, where the block's scale is divided by the global one."""
    return _nvfp4(pieces, pieces["{}.*_scale"], pieces["{}.*_global_scale"], divides=True)


def nvfp4_multiplied(pieces: Pieces) -> LazyTensor | None:
    """Describe ModelOpt's NVFP4, where the block's scale is multiplied by the second one."""
    return _nvfp4(pieces, pieces["{}.*_scale"], pieces["{}.*_scale_2"], divides=False)


def _nvfp4(
    pieces: Pieces, scale: LazyTensor, whole: LazyTensor, *, divides: bool
) -> LazyTensor | None:
    """Describe NVFP4 bytes with one 8-bit float for every 16 inputs.

    ``whole`` is a further number for the tensor, or for each expert.
    """
    packed = pieces.anchor
    # One further scale for the tensor, or one for each expert of a stack.
    one = math.prod(whole.shape) in {1, packed.shape[0] if len(packed.shape) > 2 else 1}
    if packed.dtype not in _BYTES or not one or not scale.dtype.startswith("float8_e4m3"):
        return None
    # ComfyUI stores the scales in the order of a GPU's tiles.
    if not _has_blocks(packed, scale, NV_BLOCK) or "{}.comfy_quant" in pieces.found:
        return pieces.failed(
            f"stored as 4-bit floats (NVFP4) of shape {shape_text(packed.shape)} with "
            f"{scale.name} of shape "
            f"{shape_text(scale.shape)}: expected a scale for each {NV_BLOCK} numbers in the "
            "plain order of rows"
        )
    shape = (*packed.shape[:-1], 2 * packed.shape[-1])
    return pieces.made(shape, _blocks_of_4_bits, packed, scale, whole, divides=divides)


def _has_blocks(packed: LazyTensor, scale: LazyTensor, size: int) -> bool:
    """Whether there is one scale for every ``size`` numbers of a row."""
    same_rows = len(packed.shape) >= 2 and scale.shape[:-1] == packed.shape[:-1]
    return same_rows and scale.shape[-1] * size == 2 * packed.shape[-1]


def _blocks_of_4_bits(
    packed: Tensor, scale: Tensor, whole: Tensor | None, *, divides: bool
) -> Tensor:
    """Decode bytes whose rows consist of equal blocks with one scale each."""
    values = e2m1_values(packed)
    factor = scale_values(scale)
    if whole is not None:
        number = (
            whole.to(torch.float32).reshape(-1, *(1,) * (factor.ndim - 1))
            if whole.numel() > 1
            else whole.float()
        )
        factor = factor / number if divides else factor * number
    # (.., rows, blocks, numbers of a block) times (.., rows, blocks, 1).
    blocks = values.reshape(*factor.shape, -1) * factor.unsqueeze(-1)
    return blocks.flatten(-2)


def e2m1_values(packed: Tensor) -> Tensor:
    """Decode bytes that hold two e2m1 numbers each, the first in the low half."""
    codes = packed.contiguous().view(torch.uint8)
    # Interleave the low and the high halves of all bytes.
    halves = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
    return E2M1.to(halves.device)[halves.to(torch.int32)]


def bitsandbytes_4bit(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight of bitsandbytes' types nf4 and fp4.

    A value is an entry of a table of 16 numbers, times the largest magnitude of its block. Shape
    and block size are in a JSON text beside the weight. The magnitudes may themselves be quantised
    with 8 bits around a mean ("double quantisation", arXiv 2305.14314, section 3).
    """
    state = pieces.only(
        ("{}.*.quant_state.bitsandbytes__nf4", "{}.*.quant_state.bitsandbytes__fp4")
    )
    if state is None or pieces.blocked:
        return pieces.failed(_NO_STATE if state is None else pieces.blocked or "")
    nested = pieces.get("{}.*.nested_absmax"), pieces.get("{}.*.nested_quant_map")
    try:
        said = checked(_QuantState, parse_json(bytes_of(state)))
    except SchemaError as error:
        return pieces.failed(f"{_BAD_STATE} ({error})")
    shape = tuple(said.shape)
    if wrong := _contradiction(pieces, said):
        return pieces.failed(f"{_BAD_STATE} ({wrong})")
    return pieces.made(
        shape,
        four_bit_values,
        pieces.anchor,
        pieces["{}.*.absmax"],
        pieces["{}.*.quant_map"],
        *nested,
        shape=shape,
        # A last block may be shorter, and a single one may state any size.
        block=min(said.blocksize, max(1, math.prod(shape))),
        nested_block=min(said.nested_blocksize or 1, max(1, pieces["{}.*.absmax"].numel)),
        offset=said.nested_offset,
    )


_Block: TypeAlias = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]


class _QuantState(msgspec.Struct):
    """What bitsandbytes states about a 4-bit weight; its other entries are not used."""

    shape: list[Count]
    blocksize: _Block
    nested_blocksize: _Block | None = None
    nested_offset: Finite | None = None


def _contradiction(pieces: Pieces, said: _QuantState) -> str:
    """Say where the stated shape and blocks contradict the tensors; empty if they do not."""
    # The bytes may be stored as wider numbers (bnb_4bit_quant_storage), as for training with FSDP.
    stored = pieces.anchor.numel * getattr(torch, pieces.anchor.dtype, torch.uint8).itemsize
    if -(-math.prod(said.shape) // 2) != stored:
        return f"a shape of {shape_text(tuple(said.shape))} for {stored} bytes"
    scales, outer = pieces["{}.*.absmax"], pieces.get("{}.*.nested_absmax")
    if (outer is None) != (pieces.get("{}.*.nested_quant_map") is None) or (
        outer is None and not scales.is_floating
    ):
        return "magnitudes that are quantised, and no table for them"
    if outer is not None and scales.dtype != "uint8":
        return f"magnitudes that are codes of a table, stored as {scales.dtype} and not as uint8"
    for table, codes in (
        (pieces["{}.*.quant_map"], 16),
        (pieces.get("{}.*.nested_quant_map"), 256),
    ):
        if table is not None and table.numel != codes:
            return f"a table of {table.numel} numbers for {codes} codes"
    levels = [(scales, math.prod(said.shape), said.blocksize)]
    if outer is not None:
        levels.append((outer, scales.numel, said.nested_blocksize or 0))
    for magnitudes, count, block in levels:
        if not block or magnitudes.numel != -(-count // block):
            return f"{magnitudes.numel} magnitudes for {count} numbers in blocks of {block}"
    return ""


_NO_STATE = (
    "stored as 4-bit numbers of bitsandbytes, and the quant_state beside them that gives their "
    "shape is missing: dequantise it first"
)
"""The problem of a weight without the text that gives its shape."""
_BAD_STATE = (
    "stored as 4-bit numbers of bitsandbytes, and the quant_state beside them is damaged: "
    "dequantise it first"
)
"""The problem of a weight whose text is there, but says what cannot be."""


def four_bit_values(
    packed: Tensor,
    magnitudes: Tensor,
    table: Tensor,
    nested_magnitudes: Tensor | None,
    nested_table: Tensor | None,
    *,
    shape: tuple[int, ...],
    block: int,
    nested_block: int | None,
    offset: float | None,
) -> Tensor:
    """Decode bitsandbytes' 4-bit numbers."""
    # Undo double quantisation first: the magnitudes are codes of another table.
    if nested_magnitudes is not None and nested_table is not None and nested_block:
        codes = magnitudes.reshape(-1).to(torch.int64)
        factors = (
            nested_magnitudes.float().reshape(-1).repeat_interleave(nested_block)[: codes.numel()]
        )
        magnitudes = nested_table.float().reshape(-1)[codes] * factors + (offset or 0.0)
    codes = packed.contiguous().view(torch.uint8).reshape(-1)
    numel = math.prod(shape)
    # The high half comes first here.
    halves = torch.stack((codes >> 4, codes & 15), dim=-1).flatten()[:numel]
    factor = magnitudes.float().reshape(-1).repeat_interleave(block)[:numel]
    return (table.float().reshape(-1)[halves.to(torch.int32)] * factor).reshape(shape)
