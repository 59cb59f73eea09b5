"""Integers in groups of neighbours along the inputs, each group with its own scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from spectail.core.quantisers.base import SCALE_BITS, Quantiser, groups_of, ratio, ungrouped


@dataclass(frozen=True)
class Integers(Quantiser):
    """2^bits levels from the least to the largest weight of every group (asymmetric).

    The least weight and the step are stored in half precision, as HQQ and llama.cpp's Q4_1 do.
    """

    meaning: ClassVar[str] = "integers from the least to the largest weight of a group"

    bits: int
    group: int = 128

    @property
    def name(self) -> str:
        """``int4``, or ``int4-g64`` for groups of 64 in place of 128."""
        return f"int{self.bits}" if self.group == 128 else f"int{self.bits}-g{self.group}"

    def storage(self, rows: int, cols: int) -> int:
        """Return the bits of the integers, and two half-precision numbers per group."""
        return rows * (cols * self.bits + -(-cols // self.group) * 2 * SCALE_BITS)

    def dequantised(self, matrix: Tensor) -> Tensor:
        """Return the nearest levels."""
        groups = groups_of(matrix.float(), self.group)
        most = 2**self.bits - 1
        low = groups.amin(dim=-1, keepdim=True)
        step = (groups.amax(dim=-1, keepdim=True) - low).div(most).half().float()
        low = low.half().float()
        levels = ratio(groups - low, step).round_().clamp_(0, most)
        return ungrouped(levels.mul_(step).add_(low), matrix.shape[1])


@dataclass(frozen=True)
class SymmetricIntegers(Quantiser):
    """Whole multiples of one scale per group, without an offset: llm-compressor's W4A16, W8A16.

    The scale is the largest magnitude divided by (2^bits - 1) / 2, and the multiples run from
    -2^(bits-1) to 2^(bits-1) - 1 (compressed-tensors, ``calculate_qparams``).
    """

    meaning: ClassVar[str] = "multiples of one scale per group of 128 (llm-compressor)"

    bits: int
    group: int = 128

    @property
    def name(self) -> str:
        """``w4a16``: weights of 4 bits, activations of 16."""
        return f"w{self.bits}a16"

    def storage(self, rows: int, cols: int) -> int:
        """Return the bits of the integers, and one half-precision scale per group."""
        return rows * (cols * self.bits + -(-cols // self.group) * SCALE_BITS)

    def dequantised(self, matrix: Tensor) -> Tensor:
        """Return the nearest multiples."""
        groups = groups_of(matrix.float(), self.group)
        largest = groups.abs().amax(dim=-1, keepdim=True)
        scale = largest.div((2**self.bits - 1) / 2).half().float()
        half = 2 ** (self.bits - 1)
        levels = ratio(groups, scale).round_().clamp_(-half, half - 1)
        return ungrouped(levels.mul_(scale), matrix.shape[1])
