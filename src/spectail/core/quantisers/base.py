"""What a quantiser is: a format that stores weights in few bits, with the error that it makes.

A new format is one class (or one more instance of a class) and one line in the table of
``spectail.core.quantisers``. Everything here rounds to nearest, without calibration data: what a
method such as GPTQ reaches with data is better, and in the same order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from spectail.core.bands import Bands

SCALE_BITS = 16
"""Bits of a scale or an offset that is stored as a half-precision number."""
SAMPLE = 2**17
"""About how many weights stand for a large layer."""
LEAST_ROWS = 64
"""Rows that stand for it at least: rows differ in scale, and a few long ones would not tell."""


class Quantiser(ABC):
    """A format for a matrix (outputs, inputs). Subclasses are frozen dataclasses."""

    meaning: ClassVar[str]
    """What the format stores, in one phrase for the documentation's table."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the command line and files call the format."""

    @abstractmethod
    def storage(self, rows: int, cols: int) -> int:
        """Return the bits that a matrix takes, with its scales and offsets."""

    @abstractmethod
    def dequantised(self, matrix: Tensor) -> Tensor:
        """Return the values (rows, cols), in float32, that the stored matrix stands for."""

    def fits(self, rows: int, cols: int) -> bool:
        """Say whether a matrix of this shape can be stored; some formats need whole blocks."""
        return True


def relative_error(quantiser: Quantiser, matrices: Tensor) -> float:
    """Return t^2 = ||Q(W) - W||^2 / ||W||^2 over matrices (..., rows, cols); 0 for zeros alone.

    The formula is that of HIGGS (arXiv 2411.17525, section 3). It is infinite for weights beyond
    float32, which no format holds.

    >>> from spectail.core.quantisers import quantiser_named
    >>> round(relative_error(quantiser_named("int2"), torch.tensor([[0.0, 1.0, 2.0, 3.5]])), 4)
    0.0081
    """
    errors, total = 0.0, 0.0
    # Relative to the largest weight, so that no square overflows or vanishes.
    largest = float(matrices.abs().amax()) or 1.0
    if largest > torch.finfo(torch.float32).max:
        return math.inf
    for matrix in matrices.reshape(-1, *matrices.shape[-2:]):
        values = matrix.double()
        lost = quantiser.dequantised(matrix).double() - values
        errors += float((lost / largest).square().sum())
        total += float((values / largest).square().sum())
    return errors / total if total > 0 else 0.0


def sampled_rows(matrices: Tensor | Bands) -> Tensor:
    """Return evenly spaced rows (n, cols) of a large layer (..., rows, cols), or all.

    There are about ``SAMPLE`` weights and at least ``LEAST_ROWS`` rows, so that measuring costs
    little beside the eigenvalues. They are in float32, or in float64 if the layer is.
    """
    rows, cols = matrices.shape[-2:]
    count = math.prod(matrices.shape[:-1])
    kept = min(count, max(LEAST_ROWS, SAMPLE // cols))
    chosen = torch.linspace(0, count - 1, kept, dtype=torch.float64).round().long()
    if isinstance(matrices, Bands):
        found = matrices.rows(chosen.tolist())
    else:
        chosen = chosen.to(matrices.device)
        stacked = matrices.reshape(-1, rows, cols)
        # Two indices in place of one over flat rows: a transposed layer would be copied whole.
        found = stacked[chosen // rows, chosen % rows]
    return found.to(torch.promote_types(found.dtype, torch.float32))


def groups_of(matrix: Tensor, size: int) -> Tensor:
    """Cut rows into groups of ``size`` inputs, (rows, groups, size).

    A last group that is short is filled by repeating the last weight, which changes no range.
    """
    rows, cols = matrix.shape
    padded = functional.pad(matrix, (0, -cols % size), mode="replicate")
    return padded.reshape(rows, -1, size)


def ungrouped(groups: Tensor, cols: int) -> Tensor:
    """Put the groups of ``groups_of`` together again, (rows, cols)."""
    return groups.flatten(1)[:, :cols]


def ratio(values: Tensor, steps: Tensor) -> Tensor:
    """Return ``values / steps``, and 0 where a step is 0 because its group has no range."""
    return torch.where(steps > 0, values / torch.where(steps > 0, steps, 1.0), 0.0)
