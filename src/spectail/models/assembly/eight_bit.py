"""8-bit floats and integers with a scale for the tensor, for each row or column, or for each block.

The weight is the stored number, less its zero point if there is one, times the scale. DeepSeek's
``weight_scale_inv`` is multiplied as well, despite its name. A scale that is stored as unsigned
8-bit integers, or as torch's float8_e8m0fnu, is the exponent of a power of two: 2 ** (x - 127) (OCP
Microscaling Formats v1.0, section 5.4.1).

The size of a block comes from the configuration. Without one, it is taken from the shapes, but only
if they leave one choice: 3 scales for 300 columns may be blocks of 128, the last one cut short, or
blocks of 100.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from spectail.models.assembly.groups import block_lengths
from spectail.models.assembly.pieces import Pieces, shape_text
from spectail.models.lazy_tensor import Index, LazyTensor, piece_of

SCALES = (
    "{}.*_scale_inv",
    "{}.*_scale",
    "{}.*_scales",
    "{}.*s_scaling_factor",
    "{}.*_quantizer.scale",
    "{}.*_quantizer._scale",
)
"""What the scale of any parameter is called."""
WEIGHT_SCALES = (*SCALES, "{}.scale", "{}.scales", "{}.scale_weight", "{}.*.scale")
"""What the scale of a parameter called ``weight`` is called."""
ZERO_POINTS = (
    "{}.*_zero_point",
    "{}.*_quantizer.zero_point",
    "{}.*_quantizer._zero_point",
    "{}.zero_point",
)
"""What zero points are called."""
EXPONENTS = frozenset({"uint8", "float8_e8m0fnu"})
"""Types of scales that are exponents of a power of two."""
_NO_STRETCH = 1.0
"""Further factor of every scale, for formats that have none."""


@dataclass(frozen=True)
class Grid:
    """How a scale lies over a weight."""

    view: tuple[int, ...]
    """Shape of the scale with as many dimensions as the weight has."""
    widths: tuple[int, ...]
    """For each dimension, how many consecutive entries of the weight share a scale."""
    is_transposed: bool = False
    """Whether the scale is stored with its last two dimensions exchanged."""


def is_float8(stored: LazyTensor) -> bool:
    """Whether a tensor holds 8-bit floats that can be weights."""
    return stored.dtype.startswith("float8") and stored.dtype != "float8_e8m0fnu"


def scaled(pieces: Pieces) -> LazyTensor | None:
    """Describe 8-bit floats or integers that are not called ``weight``, such as stacked experts."""
    if pieces.anchor.name.rpartition(".")[2] == "weight":
        return None
    return _scaled(pieces, pieces.only(SCALES), pieces.only(ZERO_POINTS))


def scaled_weight(pieces: Pieces) -> LazyTensor | None:
    """Describe 8-bit numbers called ``weight``, whose scale may have a shorter name."""
    return _scaled(pieces, pieces.only(WEIGHT_SCALES), pieces.only(ZERO_POINTS))


def torch_packed(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight that torch itself has quantised; torch also dequantises it."""
    weight = pieces.anchor
    return (
        pieces.described(weight.shape, weight.read)
        if weight.is_floating and len(weight.shape) >= 2
        else None
    )


def fake_quantised(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight of ordinary floating-point numbers that the model rounds when it runs.

    ModelOpt and torch's quantisation-aware training store weights in this way.
    """
    weight = pieces.anchor
    if not weight.is_floating or is_float8(weight):
        return None
    return replace(
        weight,
        note="the model rounds this weight when it runs; the weight before rounding is measured",
    )


def quanto_bytes(pieces: Pieces) -> LazyTensor | None:
    """Describe an 8-bit weight of optimum-quanto: ``_data`` times ``_scale``."""
    return _scaled(pieces, pieces["{}.*._scale"], None)


def torchao_bytes(pieces: Pieces) -> LazyTensor | None:
    """Describe an 8-bit weight of torchao.

    In safetensors files, torchao's tensor subclass is stored as its parts.
    """
    return _scaled(pieces, pieces["{}._*_scale"], pieces.get("{}._*_zero_point"))


def bitsandbytes_int8(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight of bitsandbytes' LLM.int8 (arXiv 2208.07339, section 2.1).

    Each row is multiplied by SCB / 127, where SCB is the row's largest magnitude.
    """
    weight, scale, order = pieces.anchor, pieces["{}.SCB"], pieces.get("{}.weight_format")
    if (
        weight.dtype != "int8"
        or len(weight.shape) != 2
        or math.prod(scale.shape) != weight.shape[0]
    ):
        return None
    if order is not None and not order.problem and int(order.read(()).reshape(-1)[0]) != 0:
        return pieces.failed(
            "stored as bitsandbytes int8 in the order of a GPU's tile, weight_format is not 0: "
            "load and save it with bitsandbytes 0.43 or newer"
        )
    grid = Grid((weight.shape[0], 1), (1, weight.shape[1]))
    return pieces.described(weight.shape, partial(_read_scaled, weight, scale, None, grid, 1 / 127))


def eetq(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight of EETQ: int8 stored as (in, out), with one scale for each output."""
    weight, scale = pieces.anchor, pieces["{}.weight_scales"]
    if weight.dtype != "int8" or len(weight.shape) != 2 or scale.shape != weight.shape[1:]:
        return None
    named = pieces.quantisation.get("quant_method")
    # The same tensors can be an ordinary int8 weight; only a shape that is not square tells.
    if named != "eetq" and (named is not None or weight.shape[0] == weight.shape[1]):
        return None
    return pieces.made(weight.shape[::-1], _transposed_columns, weight, scale)


def _transposed_columns(weight: Tensor, scale: Tensor) -> Tensor:
    """Scale the columns and exchange the dimensions."""
    return (weight.to(torch.float32) * scale.to(torch.float32)).T


def _scaled(pieces: Pieces, scale: LazyTensor | None, zero: LazyTensor | None) -> LazyTensor | None:
    """Describe a scaled weight; None if it is not an 8-bit number with exactly one scale."""
    weight = pieces.anchor
    # Unsigned integers need a zero point; without one they are packed or exponents.
    integers = weight.dtype == "int8" or (weight.dtype == "uint8" and zero is not None)
    if scale is None or len(weight.shape) < 2 or not (is_float8(weight) or integers):
        return None
    if pieces.quantisation.get("quantization_bit") == 4:
        return pieces.failed(
            "stored as two 4-bit integers in a byte (ChatGLM, quantization_bit 4): dequantise it "
            "first"
        )
    if integers and scale.dtype in EXPONENTS and math.prod(scale.shape) > max(1, weight.shape[-2]):
        return pieces.failed(
            _misfit(weight, scale, "integers whose scale is an exponent per block are not defined")
        )
    grid = grid_of(weight.shape, scale.shape, pieces.quantisation.block_size)
    if grid is None:
        return pieces.failed(_misfit(weight, scale, _why_no_grid(pieces.quantisation.block_size)))
    if zero is not None and math.prod(zero.shape) != math.prod(scale.shape):
        return pieces.failed(_misfit(weight, zero, "expected one zero point for each scale"))
    read = partial(_read_scaled, weight, scale, zero, grid, _NO_STRETCH)
    note = ""
    if any(name.endswith("pre_quant_scale") for name in pieces.found):
        note = (
            "the layer's input is multiplied by pre_quant_scale first, which is not part of this "
            "weight"
        )
    return pieces.described(weight.shape, read, note=note)


def _misfit(weight: LazyTensor, scale: LazyTensor, why: str) -> str:
    """Name a weight and a scale that do not go together, and say why."""
    return (
        f"{weight.dtype} {weight.name} of shape {shape_text(weight.shape)} with {scale.dtype} "
        f"{scale.name} of shape {shape_text(scale.shape)}: {why}"
    )


def _why_no_grid(block: tuple[int, int] | None) -> str:
    """Say which shape of a scale was expected."""
    if block:
        return (
            "expected one scale for the tensor, for each row, or for each block of "
            f"{shape_text(block)}"
        )
    return (
        "the shapes leave more than one block size, or none; "
        "open the model's folder, whose config.json has quantization_config.weight_block_size"
    )


def grid_of(
    weight: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int] | None
) -> Grid | None:
    """Find how a scale lies over a weight; None if it fits in no way, or in several.

    >>> grid_of((256, 512), (2, 4), None).widths
    (128, 128)
    >>> grid_of((300, 300), (3, 3), None), grid_of((8, 6), (8,), None).view
    (None, (8, 1))
    """
    if math.prod(scale) == 1:
        return Grid((1,) * len(weight), weight)
    if len(scale) != len(weight):
        view = _with_all_dimensions(weight, scale)
        return None if view is None else _only(_fits(weight, view, block))
    as_stored = _fits(weight, scale, block)
    exchanged = (*scale[:-2], scale[-1], scale[-2])
    turned = _only(_fits(weight, exchanged, block)) if exchanged != scale else None
    # A scale is transposed only if it cannot lie in its stored orientation. If it can in several
    # ways, that does not speak for the transposed one.
    if not as_stored:
        return None if turned is None else Grid(turned.view, turned.widths, is_transposed=True)
    stored = _only(as_stored)
    # Blocks are usually square. If only the transposed reading has square blocks, the stored one is
    # trusted only if it is a scale per row or column.
    if (
        stored
        and block is None
        and turned
        and _has_square_blocks(turned)
        and not _has_square_blocks(stored)
    ):
        rows_or_columns = any(
            width in {1, size} for width, size in zip(stored.widths, weight, strict=True)
        )
        return stored if rows_or_columns else None
    return stored


def _only(grids: list[Grid]) -> Grid | None:
    """Return the only element; None if there is none, or more than one."""
    return grids[0] if len(grids) == 1 else None


def _has_square_blocks(grid: Grid) -> bool:
    """Whether blocks have as many rows as columns."""
    return grid.widths[-1] == grid.widths[-2]


def _with_all_dimensions(weight: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return a scale's shape with the dimensions that it leaves out, or None if they are unclear.

    By convention, a scale with too few dimensions leaves out the last ones; otherwise the sizes
    decide.
    """
    # ModelOpt stores (blocks, 1, blocks, 1).
    if len(scale) == 2 * len(weight) and all(size == 1 for size in scale[1::2]):
        return scale[::2]
    if len(weight) == 2 and len(scale) == 1:
        return (
            (*scale, 1) if scale[0] == weight[0] else (1, *scale) if scale[0] == weight[1] else None
        )
    if len(scale) == 1:
        # One scale per expert, unless it could also be one per output.
        is_unclear = len(weight) == 3 and weight[0] == weight[1]
        return (
            (*scale, *(1,) * (len(weight) - 1))
            if scale[0] == weight[0] and not is_unclear
            else None
        )
    # Experts: one scale for each output or for each input of every expert.
    if len(weight) == 3 and len(scale) == 2 and scale[0] == weight[0]:
        views = [(*scale, 1)] * (scale[1] == weight[1]) + [(scale[0], 1, scale[1])] * (
            scale[1] == weight[2]
        )
        return views[0] if len(views) == 1 else None
    return None


def _fits(
    weight: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int] | None
) -> list[Grid]:
    """List the ways in which a scale with as many dimensions as the weight can lie over it."""
    # Entries that share a scale along each dimension if there are no blocks; 0 means blocks.
    plain = tuple(
        1 if n == size else size if n == 1 else 0 for size, n in zip(weight, scale, strict=True)
    )
    if all(plain):
        return [Grid(scale, plain)]
    if block is not None:
        wanted = tuple(-(-size // width) for size, width in zip(weight[-2:], block, strict=True))
        return (
            [Grid(scale, (*plain[:-2], *block))] if all(plain[:-2]) and scale[-2:] == wanted else []
        )
    lengths = [block_lengths(size, n) for size, n in zip(weight, scale, strict=True)]
    return [Grid(scale, widths) for widths in itertools.product(*lengths)]


def scale_values(scale: Tensor) -> Tensor:
    """Return a scale as float32; unsigned 8-bit integers are exponents."""
    if scale.dtype == torch.uint8:
        return torch.exp2(scale.to(torch.float32) - 127)
    return scale.to(torch.float32)


def _read_scaled(
    weight: LazyTensor,
    scale: LazyTensor,
    zero: LazyTensor | None,
    grid: Grid,
    stretch: float,
    index: Index,
) -> Tensor:
    """Compute the weight, or one matrix of a stack."""
    factor = _laid_out(scale_values(scale.read(())), grid) * stretch
    shift = _laid_out(zero.read(()).to(torch.float32), grid) if zero else None
    shape, widths, lead = weight.shape, grid.widths, index[:1]
    # Read one matrix of a stack without decoding the others.
    if len(shape) > 2 and lead and isinstance(lead[0], int):
        factor = _of_one(factor, lead[0])
        shift = None if shift is None else _of_one(shift, lead[0])
        shape, widths, index = shape[1:], widths[1:], index[1:]
    else:
        lead = ()
    values = weight.read(lead).to(torch.float32)
    if shift is not None:
        values = values - _spread(shift, shape, widths)
    return piece_of(values * _spread(factor, shape, widths), index)


def _of_one(scale: Tensor, first: int) -> Tensor:
    """Return the scale of one matrix of a stack; all matrices may share one."""
    return scale[first if scale.shape[0] > 1 else 0]


def _laid_out(scale: Tensor, grid: Grid) -> Tensor:
    """Give a scale as many dimensions as its weight has."""
    if grid.is_transposed:
        return scale.transpose(-1, -2)
    return scale.reshape(grid.view)


def _spread(scale: Tensor, shape: tuple[int, ...], widths: tuple[int, ...]) -> Tensor:
    """Repeat each scale over its block. A single scale needs no copies: it broadcasts."""
    for dim, (size, width) in enumerate(zip(shape, widths, strict=True)):
        if width > 1 and scale.shape[dim] > 1:
            # narrow() cuts the last block where it reaches beyond the weight.
            scale = scale.repeat_interleave(width, dim=dim).narrow(dim, 0, size)
    return scale
