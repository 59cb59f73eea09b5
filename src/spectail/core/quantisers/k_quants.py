"""The k-quants of llama.cpp: super-blocks of 256 weights, with scales in two levels.

Layouts and sizes are those of ``ggml-common.h``. llama.cpp searches each block's scale by weighted
least squares; here the search is a plain least-squares one, so its errors are close, not equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spectail.core.quantisers.base import SCALE_BITS, Quantiser, ratio

SUPER_BLOCK = 256
"""Weights that share the half-precision scales of the second level."""
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)
"""Ranges of a block that the search tries, beside its largest weight.

A smaller range cuts the largest weights off, and has finer steps for all the others."""


@dataclass(frozen=True)
class KQuant(Quantiser):
    """Integers of ``bits`` bits in blocks; the scale of a block is an integer too.

    With ``offset`` a block has a least value (Q2_K, Q4_K, Q5_K); without it, the integers are
    symmetric around 0 (Q3_K, Q6_K).
    """

    meaning: ClassVar[str] = "llama.cpp's type, for rows of a multiple of 256"

    bits: int
    block: int
    scale_bits: int
    offset: bool

    @property
    def name(self) -> str:
        """llama.cpp's name in lower case, such as ``q4_k``."""
        return f"q{self.bits}_k"

    def fits(self, rows: int, cols: int) -> bool:
        """Say whether rows are whole super-blocks; llama.cpp takes another type where not."""
        return cols % SUPER_BLOCK == 0

    def storage(self, rows: int, cols: int) -> int:
        """Return the bits of the integers, the scales of blocks and those of super-blocks."""
        scales = SUPER_BLOCK // self.block * self.scale_bits + SCALE_BITS
        return rows * cols // SUPER_BLOCK * (SUPER_BLOCK * self.bits + scales * (1 + self.offset))

    def dequantised(self, matrix: Tensor) -> Tensor:
        """Find the scales of the blocks, round them to their integers, then round the weights."""
        blocks = matrix.float().reshape(-1, SUPER_BLOCK // self.block, self.block)
        found = self._with_offset(blocks) if self.offset else self._symmetric(blocks)
        return found.reshape(matrix.shape)

    def _with_offset(self, blocks: Tensor) -> Tensor:
        """Round to ``scale x integer - offset``, the offset being at least 0."""
        most, top = 2**self.bits - 1, 2**self.scale_bits - 1
        steps, lows = self._best_range(blocks, most)
        # The second level: the largest scale and offset of a super-block are in half precision.
        unit, low_unit = (
            x.amax(dim=1, keepdim=True).div(top).half().float() for x in (steps, -lows)
        )
        steps = ratio(steps, unit).round_().clamp_(0, top).mul_(unit)
        lows = -ratio(-lows, low_unit).round_().clamp_(0, top).mul_(low_unit)
        return ratio(blocks - lows, steps).round_().clamp_(0, most).mul_(steps).add_(lows)

    def _best_range(self, blocks: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Return the step and the least value of each block that give the least squared error."""
        low = blocks.amin(dim=-1, keepdim=True).clamp(max=0)
        high = blocks.amax(dim=-1, keepdim=True).clamp(min=0)
        best: list[Tensor] = []
        for shrink in _SHRINKS:
            levels = ratio(blocks - low * shrink, (high - low) * shrink / most)
            step, start = _line(levels.round_().clamp_(0, most), blocks)
            rounded = ratio(blocks - start, step).round_().clamp_(0, most).mul_(step).add_(start)
            best = _better(best, [(rounded - blocks).square_().sum(-1, keepdim=True), step, start])
        return best[1], best[2]

    def _symmetric(self, blocks: Tensor) -> Tensor:
        """Round to ``scale x integer``; a scale has a sign, as integers reach one further down."""
        half, top = 2 ** (self.bits - 1), 2 ** (self.scale_bits - 1)
        scales = self._best_scale(blocks, half)
        largest = scales.gather(1, scales.abs().argmax(dim=1, keepdim=True))
        unit = largest.div(-top).half().float()
        scales = _signed_ratio(scales, unit).round_().clamp_(-top, top - 1).mul_(unit)
        return _signed_ratio(blocks, scales).round_().clamp_(-half, half - 1).mul_(scales)

    def _best_scale(self, blocks: Tensor, half: int) -> Tensor:
        """Return the scale of each block that gives the least squared error."""
        # The weight of the largest magnitude becomes -half, so that the sign is free.
        extreme = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True))
        best: list[Tensor] = []
        for shrink in _SHRINKS:
            levels = _signed_ratio(blocks, extreme * (-shrink / half))
            levels = levels.round_().clamp_(-half, half - 1)
            # Least squares for the scale, the integers being given.
            squares = levels.square().sum(-1, keepdim=True)
            scale = ratio((levels * blocks).sum(-1, keepdim=True), squares)
            rounded = _signed_ratio(blocks, scale).round_().clamp_(-half, half - 1).mul_(scale)
            best = _better(best, [(rounded - blocks).square_().sum(-1, keepdim=True), scale])
        return best[1]


def _line(levels: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Fit ``step x level + start`` to every block by least squares, with a start of at most 0."""
    n = blocks.shape[-1]
    sums, squares = levels.sum(-1, keepdim=True), levels.square().sum(-1, keepdim=True)
    products, total = (levels * blocks).sum(-1, keepdim=True), blocks.sum(-1, keepdim=True)
    step = ratio(n * products - sums * total, n * squares - sums.square()).clamp(min=0)
    start = (total - step * sums) / n
    # Where the best start is above 0, the line goes through 0.
    through = ratio(products, squares).clamp(min=0)
    return torch.where(start > 0, through, step), start.clamp(max=0)


def _better(best: list[Tensor], found: list[Tensor]) -> list[Tensor]:
    """Keep, block by block, what has the smaller error, which comes first in both lists."""
    if not best:
        return found
    smaller = found[0] < best[0]
    return [torch.where(smaller, new, old) for new, old in zip(found, best, strict=True)]


def _signed_ratio(values: Tensor, scales: Tensor) -> Tensor:
    """Return ``values / scales`` for scales of either sign, and 0 where a scale is 0."""
    return ratio(values * scales.sign(), scales.abs())
