"""Conditions on a comparison, such as ``z>4``, by which a script or CI decides. No torch."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spectail.errors import RunError
from spectail.results.compare import Comparison

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {"z": "z", "change": "alpha_change", "alpha": "alpha_b"}
"""What a condition may look at, and the column of the comparison."""
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"\s*(\|?)\s*(\w+)\s*(\|?)\s*(>=|<=|>|<)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Condition:
    """A comparison of one column with a number, row by row.

    ``z>4`` holds where alpha rose by more than 4 combined standard errors from A to B, ``z<-4``
    where it fell, and ``|z|>4`` where it did either. ``change`` is B - A. ``alpha`` is that of B,
    also of layers that do not compare with A.
    """

    text: str
    column: str
    absolute: bool
    compare: Callable[[float, float], bool]
    limit: float

    @classmethod
    def of(cls, text: str) -> Condition:
        """Read a condition; RunError for another form."""
        match = _FORM.fullmatch(text)
        if match and match[2] in COLUMNS and bool(match[1]) == bool(match[3]):
            try:
                limit = float(match[5])
            except ValueError:
                limit = math.nan
            if math.isfinite(limit):
                return cls(text.strip(), match[2], bool(match[1]), OPERATORS[match[4]], limit)
        raise RunError(
            f"a condition is one of {', '.join(COLUMNS)} against a number, such as z>4, z<-4 or "
            f"|z|>4; not {text!r}"
        )

    def holds(self, comparison: Comparison) -> list[str]:
        """Return the names of the layers for which it holds; unknown values hold for nothing."""
        known = self._known(comparison)
        return [
            str(name)
            for name, value in zip(known["name"], known[COLUMNS[self.column]], strict=True)
            if self.compare(abs(value) if self.absolute else value, self.limit)
        ]

    def unknown(self, comparison: Comparison) -> int:
        """Count the layers for which it is open because they have no such value."""
        return len(comparison.table) - len(self._known(comparison))

    def _known(self, comparison: Comparison) -> pd.DataFrame:
        """Return the rows that have a value: of a change only pairs, of B's alpha all of B."""
        table = comparison.table
        known = table[COLUMNS[self.column]].map(math.isfinite)
        # The change and z are NaN for all but pairs; B's alpha is known without a partner.
        return table[known]
