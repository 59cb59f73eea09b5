"""Floating-point formats of 8 and 4 bits: FP8 with a scale per row, NVFP4 with one per block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from spectail.core.quantisers.base import Quantiser, groups_of, ratio, ungrouped

_E4M3_MOST = 448.0
"""The largest number of e4m3: 4 bits of exponent, 3 of mantissa."""
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of e2m1, by their codes (OCP Microscaling Formats v1.0, section 5.3.3)."""


@dataclass(frozen=True)
class Float8(Quantiser):
    """e4m3 numbers with one float32 scale per row (output channel)."""

    meaning: ClassVar[str] = "e4m3 numbers with one scale per row"

    @property
    def name(self) -> str:
        """``fp8``."""
        return "fp8"

    def storage(self, rows: int, cols: int) -> int:
        """Return the bits of the numbers and scales."""
        return rows * (cols * 8 + 32)

    def dequantised(self, matrix: Tensor) -> Tensor:
        """Scale every row to the largest number of e4m3, and round."""
        values = matrix.float()
        scale = values.abs().amax(dim=1, keepdim=True) / _E4M3_MOST
        return _e4m3(ratio(values, scale)).mul_(scale)


@dataclass(frozen=True)
class Nvfp4(Quantiser):
    """e2m1 numbers in blocks of 16 with an e4m3 scale each, and one float32 scale per matrix."""

    meaning: ClassVar[str] = "e2m1 numbers in blocks of 16 with an e4m3 scale"

    block: ClassVar[int] = 16

    @property
    def name(self) -> str:
        """``nvfp4``."""
        return "nvfp4"

    def storage(self, rows: int, cols: int) -> int:
        """Return the bits of the numbers and scales."""
        return rows * (cols * 4 + -(-cols // self.block) * 8) + 32

    def dequantised(self, matrix: Tensor) -> Tensor:
        """Scale every block to the largest number of e2m1, and round scales and numbers."""
        groups = groups_of(matrix.float(), self.block)
        # The scale of the matrix lets the scales of its blocks use the whole range of e4m3.
        whole = groups.abs().amax() / (_E4M3_MOST * _E2M1[-1])
        wanted = groups.abs().amax(dim=-1, keepdim=True) / _E2M1[-1]
        scale = _e4m3(ratio(wanted, whole)) * whole
        return ungrouped(_e2m1(ratio(groups, scale)).mul_(scale), matrix.shape[1])


def _e4m3(values: Tensor) -> Tensor:
    """Round to the nearest e4m3; what is larger than the largest becomes the largest."""
    return values.clamp(-_E4M3_MOST, _E4M3_MOST).to(torch.float8_e4m3fn).float()


def _e2m1(values: Tensor) -> Tensor:
    """Round to the nearest e2m1, ties to an even code; what is larger than 6 becomes 6."""
    between = [(low + high) / 2 for low, high in pairwise(_E2M1)]
    # A bucket includes its upper bound, so a tie goes down. It must go up from every odd code.
    limits = [x if code % 2 == 0 else math.nextafter(x, 0) for code, x in enumerate(between)]
    bounds = torch.tensor(limits, dtype=torch.float64, device=values.device)
    table = torch.tensor(_E2M1, dtype=values.dtype, device=values.device)
    return table[torch.bucketize(values.abs().double(), bounds)].copysign(values)
