"""HQQ (Half-Quadratic Quantization): integers of 1 to 8 bits, packed by parts of the matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectail.models.assembly.pieces import Pieces, bytes_of, shape_text
from spectail.models.lazy_tensor import LazyTensor

_BITS = {"8bit_u8": 8, "4bit_u8": 4, "3bit_32": 3, "2bit_u8": 2, "1bit_u8": 1}
"""Names of HQQ's packings, with the number of bits."""


def hqq(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight of HQQ, whose settings are stored as tensors beside it.

    ``W_q`` cuts the rows of the grouped matrix into equal parts and stores the first part in the
    highest bits. The settings are the number of bits, the shape, and the name of the packing.
    """
    packed, scale, zero, said = (
        pieces.anchor,
        pieces.get("{}.scale"),
        pieces.get("{}.zero"),
        pieces.get("{}.shape"),
    )
    name = pieces.get("{}.packing")
    if (
        scale is None
        or zero is None
        or said is None
        or name is None
        or said.problem
        or name.problem
    ):
        return None
    shape = tuple(int(n) for n in said.read(()).reshape(-1))
    packing = bytes_of(name).decode("ascii", "replace")
    plain = scale.is_floating and zero.is_floating and not packed.is_floating
    if packing not in _BITS or len(shape) != 2 or not plain:
        how = "viewed as floats" if packed.is_floating else "with quantised scales"
        return pieces.failed(
            f"stored as packed integers (HQQ, {packing[:20]!r}) {how}: dequantise it first"
        )
    bits = _BITS[packing]
    rows = _rows(packed.shape, scale.shape, shape, bits) if scale.shape == zero.shape else None
    if rows is None:
        return pieces.failed(
            f"stored as packed integers (HQQ), {shape_text(packed.shape)} for "
            f"{shape_text(shape)} weights with {shape_text(scale.shape)} scales and "
            f"{shape_text(zero.shape)} zero points, which do not go together: dequantise it first"
        )
    return pieces.made(shape, _values, packed, scale, zero, bits=bits, rows=rows, shape=shape)


def _rows(
    packed: tuple[int, ...], scale: tuple[int, ...], shape: tuple[int, ...], bits: int
) -> int | None:
    """Return the rows of the grouped matrix; None if the shapes do not go together."""
    if len(packed) != 2 or len(scale) != 2 or scale[1] not in {1, packed[1]}:
        return None
    # Packing pads the rows; the scales tell how many are real, if there is one for each.
    rows = scale[0] if scale[0] != 1 else math.prod(shape) // max(1, packed[1])
    fits = min(shape) >= 0 and rows * packed[1] == math.prod(shape)
    return rows if fits and packed[0] == -(-rows // _parts(bits)) else None


def _parts(bits: int) -> int:
    """Return how many integers an entry of the packed tensor holds."""
    # Bytes hold as many as fit; integers of 3 bits lie in words of 32 bits, ten in each.
    return 10 if bits == 3 else 8 // bits


def _values(
    packed: Tensor, scale: Tensor, zero: Tensor, *, bits: int, rows: int, shape: tuple[int, ...]
) -> Tensor:
    """Decode HQQ's layout."""
    # The first of ten 3-bit integers is at bit 27 of the word.
    shifts = [bits * part for part in reversed(range(_parts(bits)))]
    values = torch.cat([(packed >> shift) & (2**bits - 1) for shift in shifts])[:rows].to(
        torch.float32
    )
    return ((values - zero.to(torch.float32)) * scale.to(torch.float32)).reshape(shape)
