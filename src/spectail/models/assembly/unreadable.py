"""Quantised weights of known formats that only their own library can unpack.

Each gets one row, with the name of the format and, where it can be computed, the true shape.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from spectail.models.assembly.pieces import Pieces, shape_text
from spectail.models.lazy_tensor import LazyTensor

Shape: TypeAlias = "Callable[[Pieces], tuple[int, ...]]"
"""Computes the true shape, (out, in), from the packed tensors; raises LookupError if it cannot."""


def packed_by(what: str, shape: Shape | None = None) -> Callable[[Pieces], LazyTensor | None]:
    """Return a recipe's function that names the format and does not unpack it.

    Args:
        what: Name of the format.
        shape: Computes the true shape of the weight.

    """
    return partial(_packed_by, what=what, shape=shape)


def _packed_by(pieces: Pieces, *, what: str, shape: Shape | None) -> LazyTensor | None:
    """Describe a weight of a known format that is not unpacked here."""
    stored = pieces.anchor
    # A plain weight that only shares the name with the format.
    if stored.is_floating or len(stored.shape) < 2:
        return None
    try:
        true_shape = shape(pieces) if shape else None
    except LookupError:
        true_shape = None
    text = (
        f"stored as {what}, {stored.dtype} of shape {shape_text(stored.shape)}: dequantise it first"
    )
    return pieces.failed(text, true_shape)


def marlin_shape(pieces: Pieces) -> tuple[int, ...]:
    """Return Marlin's shape: tiles of 16 inputs, one column of scales for each output."""
    return pieces["{}.s"].shape[-1], pieces.anchor.shape[0] * 16


def exl2_shape(pieces: Pieces) -> tuple[int, ...]:
    """Return EXL2's shape: the permutation is as long as the inputs."""
    return pieces.anchor.shape[1], pieces["{}.q_invperm"].numel


def exl3_shape(pieces: Pieces) -> tuple[int, ...]:
    """Return EXL3's shape: the tensor holds tiles of 16 x 16, (in / 16, out / 16, words)."""
    return 16 * pieces.anchor.shape[1], 16 * pieces.anchor.shape[0]
