"""Quantisers: formats of weights, with their real bits per weight and the error that they make.

One class in a file, one line in the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from spectail.core.bands import Bands
from spectail.core.quantisers.base import Quantiser, relative_error, sampled_rows
from spectail.core.quantisers.floats import Float8, Nvfp4
from spectail.core.quantisers.integers import Integers, SymmetricIntegers
from spectail.core.quantisers.k_quants import KQuant
from spectail.core.quantisers.ranges import group_range
from spectail.errors import SpecError

QUANTISERS: list[Quantiser] = [
    *(Integers(bits) for bits in range(2, 9)),
    *(Integers(bits, group=64) for bits in (2, 3, 4)),
    SymmetricIntegers(4),
    SymmetricIntegers(8),
    Float8(),
    Nvfp4(),
    KQuant(2, block=16, scale_bits=4, offset=True),
    KQuant(3, block=16, scale_bits=6, offset=False),
    KQuant(4, block=32, scale_bits=6, offset=True),
    KQuant(5, block=32, scale_bits=6, offset=True),
    KQuant(6, block=16, scale_bits=8, offset=False),
]
"""All formats: ``analyze`` measures their errors, and ``allocate`` chooses among them."""


def quantiser_named(name: str) -> Quantiser:
    """Return a quantiser by its name.

    Raises:
        SpecError: there is no format of this name.

    """
    for quantiser in QUANTISERS:
        if quantiser.name == name:
            return quantiser
    known = ", ".join(quantiser.name for quantiser in QUANTISERS)
    raise SpecError(f"format must be one of {known}, not {name!r}")


def rounding_errors(matrices: Tensor | Bands) -> Iterator[tuple[str, float, float]]:
    """Return (name, bits per weight, relative squared error) of each format that suits a layer.

    ``matrices`` is (..., rows, cols). Errors are those of ``sampled_rows``; on SmolLM2-135M this
    moves them by 1 % of themselves.
    """
    if matrices.dtype.is_complex:
        return
    rows, cols = matrices.shape[-2:]
    sample = sampled_rows(matrices)
    for quantiser in QUANTISERS:
        if quantiser.fits(rows, cols):
            error = relative_error(quantiser, sample)
            # Weights beyond half precision cannot be stored: the format does not suit the layer.
            if math.isfinite(error):
                yield quantiser.name, quantiser.storage(rows, cols) / (rows * cols), error


__all__ = [
    "QUANTISERS",
    "Float8",
    "Integers",
    "KQuant",
    "Nvfp4",
    "Quantiser",
    "SymmetricIntegers",
    "group_range",
    "quantiser_named",
    "relative_error",
    "rounding_errors",
]
