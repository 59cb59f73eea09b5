"""Cutoffs: rules that say where the tail of a spectrum starts; one file and one table line each."""

from __future__ import annotations

import math
from collections.abc import Iterable

from spectail.core.cutoffs.base import Cutoff
from spectail.core.cutoffs.fixed import Fixed
from spectail.core.cutoffs.ks import KSMinimum
from spectail.core.cutoffs.median import Median
from spectail.core.cutoffs.peak import HistogramPeak
from spectail.core.cutoffs.top import TopFraction
from spectail.errors import SpecError

CUTOFFS: list[type[Cutoff]] = [
    Median,
    KSMinimum,
    HistogramPeak,
    TopFraction,
    Fixed,
]
"""All cutoffs. The parser, the help text, the documentation's table and the report follow from this
list."""


def cutoff_forms(cutoffs: Iterable[type[Cutoff]] = CUTOFFS) -> str:
    """List all cutoffs in their form on the command line.

    >>> cutoff_forms()
    'median, ks, peak, top:F or fixed:X'
    """
    forms = [cutoff.text for cutoff in cutoffs]
    return f"{', '.join(forms[:-1])} or {forms[-1]}"


def parse_cutoff(text: str) -> Cutoff:
    """Build a cutoff from its short text, such as ``median`` or ``top:0.1``.

    Raises:
        SpecError: if no cutoff has this form, or its number is out of range.

    """
    word, colon, number = text.strip().partition(":")
    for cutoff in CUTOFFS:
        if cutoff.text == word and not colon:
            return cutoff()
        if cutoff.text.startswith(f"{word}:") and (value := _finite(number)) is not None:
            return cutoff(value)  # type: ignore[call-arg]
    raise SpecError(f"cutoff must be {cutoff_forms()}, not {text!r}")


def _finite(text: str) -> float | None:
    """Read a finite number; return None for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


__all__ = [
    "CUTOFFS",
    "Cutoff",
    "Fixed",
    "HistogramPeak",
    "KSMinimum",
    "Median",
    "TopFraction",
    "cutoff_forms",
    "parse_cutoff",
]
