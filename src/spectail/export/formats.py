"""Formats of weights as other tools describe them, read from their names. No torch.

The names are those of ``core.quantisers``, which says what each format stores.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from spectail.allocation.allocation import Allocation
from spectail.errors import ExportError
from spectail.export.parts import shown

_INTEGERS = re.compile(r"(?:int(?P<offset>\d+)(?:-g(?P<group>\d+))?|w(?P<plain>\d+)a16)$")
_K_QUANT = re.compile(r"q\d_k$")


@dataclass(frozen=True)
class Integers:
    """Integers in groups of neighbours along a row, which share a scale."""

    bits: int
    group: int
    symmetric: bool
    """Whether the integers are multiples of the scale alone, without an offset."""


def integers_of(name: str) -> Integers | None:
    """Return what an integer format stores; None for other formats.

    >>> integers_of("int4-g64"), integers_of("fp8")
    (Integers(bits=4, group=64, symmetric=False), None)
    """
    match = _INTEGERS.match(name)
    if match is None:
        return None
    symmetric = match["plain"] is not None
    return Integers(int(match["plain"] or match["offset"]), int(match["group"] or 128), symmetric)


def is_k_quant(name: str) -> bool:
    """Whether a format is one of llama.cpp's k-quants."""
    return _K_QUANT.match(name) is not None


def has_formats(allocation: Allocation) -> bool:
    """Whether an allocation of bits chose formats; False if it chose widths.

    Raises:
        ExportError: some layers have a format and others do not.

    """
    with_format = [bool(share.format) for share in allocation.shares]
    if any(with_format) and not all(with_format):
        bare = [share.name for share in allocation.shares if not share.format]
        raise ExportError(f"the allocation has formats, but none for {shown(bare)}")
    return any(with_format)


def refuse(tool: str, name: str, known: str) -> ExportError:
    """Return the error for a format that a tool does not have."""
    return ExportError(f"{tool} has no format {name}: allocate again with --choices among {known}")
