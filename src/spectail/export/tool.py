"""What an export tool is: another program, and the text that hands it an allocation.

A new tool is one file with one class, and one line in the table of ``spectail.export``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar

from spectail.allocation.allocation import Allocation


class Tool(ABC):
    """A program that takes an allocation. Subclasses are frozen dataclasses of its options.

    On the command line, an option ``method`` or ``group_size`` is ``--method`` or ``--group-size``;
    an option ``modules`` or ``parameters`` gets the names of those of the model that ``--model``
    names; any other is given as ``--option NAME=VALUE``.
    """

    name: ClassVar[str]
    """What ``--to`` calls it."""
    takes: ClassVar[str]
    """The targets that it takes, with the methods for each, for the documentation's table."""
    tried: ClassVar[str]
    """What was run with it, for the documentation's table."""

    @abstractmethod
    def text(self, allocation: Allocation) -> str:
        """Return the content of the file.

        Raises:
            ExportError: an allocation that the tool cannot take, or an option that it refuses.

        """

    @classmethod
    def options_for(cls, allocation: Allocation) -> list[str]:
        """Return the names of the options that change something for this allocation."""
        return [field.name for field in fields(cls)]  # type: ignore[arg-type]

    def remark(self, allocation: Allocation) -> str:
        """Return what to keep in mind about the file, in one line; empty if there is nothing."""
        return ""
