"""What an allocator leaves open: how far its ratios spread, and which of its forms is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """A setting of an allocator, given or chosen on text."""

    eps: float
    """How far ratios go from their mean: from 1 - eps to 1 + eps times it."""
    form: str = ""
    """A variant of the rule, where it has several; empty if it has one."""

    def __str__(self) -> str:
        return f"{self.form}, eps {self.eps:g}" if self.form else f"eps {self.eps:g}"

    @property
    def key(self) -> str:
        """The setting as files and lists name it: ``0.2``, or ``falling 0.2`` of several forms."""
        return f"{self.form} {self.eps:g}".strip()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; a rule with one form has no ``form``."""
        return {"eps": self.eps, **({"form": self.form} if self.form else {})}
