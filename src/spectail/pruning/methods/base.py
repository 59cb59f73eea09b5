"""What a pruning method is: a rule that chooses which weights of one matrix become zero.

A new method is one file with one class, and one line in the table of ``spectail.pruning.methods``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from spectail.pruning.quotas import Pattern, Quota
from spectail.pruning.statistics import Statistic

UNSEEN = "no calibration token came here: pruned by magnitude"
"""Note on a matrix that a method had to prune without having seen its inputs."""


@dataclass(frozen=True)
class Outcome:
    """The result of a method on one matrix."""

    mask: Tensor
    """True where the weight becomes zero."""
    weights: Tensor | None = None
    """New values of the weights that stay; None if the method leaves them as they are."""
    note: str = ""
    """What a user should know about this matrix, for the report."""


class Method(ABC):
    """A pruning method. Subclasses are frozen dataclasses whose fields are the method's options."""

    statistic: ClassVar[type[Statistic] | None] = None
    """What to gather of a matrix's inputs on calibration text; None if the method needs no text."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name on the command line and in reports."""

    @property
    @abstractmethod
    def meaning(self) -> str:
        """What the method did to the weights, in full sentences, for the page of a run."""

    @abstractmethod
    def apply(self, weights: Tensor, quota: Quota, seen: Statistic | None = None) -> Outcome:
        """Choose which weights of a float matrix (rows = outputs, cols = inputs) become zero.

        The mask must meet ``quota`` exactly and ``weights`` must not be changed. ``seen`` holds the
        statistic of the inputs; it is None if the method asks for none.
        """

    def check_pattern(self, pattern: Pattern) -> None:
        """Raise PruneError if the method cannot prune by a pattern; by default it can."""

    def settings(self) -> dict[str, Any]:
        """Return the method's options as plain JSON values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
