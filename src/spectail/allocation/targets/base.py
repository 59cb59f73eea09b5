"""What an allocation target is: the quantity that every layer gets, and the rule that sets it.

A new target is one file with one class, and one line in the table of
``spectail.allocation.targets``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, TypeVar

from spectail.allocation.units import Array, Measured, Units

L = TypeVar("L", bound=Measured)


class Target(ABC):
    """A quantity to allocate. Subclasses are frozen dataclasses; their fields are its options."""

    name: ClassVar[str]
    """What the command line and files call it."""
    meaning: ClassVar[str]
    """What a layer gets and how alpha moves it, for the documentation's table."""
    budget_meaning: ClassVar[str]
    """What the budget is, for the documentation's table."""
    inside_blocks: ClassVar[bool]
    """Whether layers outside repeated blocks stay out, as compression leaves them alone."""

    level: str
    """``block`` or ``layer``: what gets one value."""

    @property
    def needs_alpha(self) -> bool:
        """Whether every layer needs an alpha; by default it does."""
        return True

    @abstractmethod
    def values(self, units: Units, budget: float) -> tuple[Array, tuple[str, ...]]:
        """Return one value per unit, and sentences on how they deviate from the published rule.

        Raises:
            AllocationError: the budget is out of reach.

        """

    def formats(self, units: Units, values: Array) -> tuple[str, ...]:
        """Return the name of the format behind each value; empty where a number says it all."""
        return ("",) * len(units.names)

    def prepared(self, layers: Sequence[L]) -> Sequence[L]:
        """Return the layers with the alphas that the rule goes by; by default the measured ones."""
        return layers

    def settings(self) -> dict[str, Any]:
        """Return the options as plain JSON values, the map as its text."""
        return {name: _plain(getattr(self, name)) for name in self.options()}

    @classmethod
    def options(cls) -> list[str]:
        """Return the names of the options."""
        return [field.name for field in fields(cls)]  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; a map is its short text."""
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, bool | int | float | str | None) else str(value)
