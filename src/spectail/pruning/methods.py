"""The methods of pruning, each a frozen type with its own options, and their names as text."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from spectail.errors import PruneError
from spectail.pruning import scores
from spectail.pruning.masks import smallest, smallest_by_row, smallest_of_groups
from spectail.pruning.quotas import Pattern, Quota
from spectail.pruning.sparsegpt import sparsegpt
from spectail.pruning.statistics import Gram, Squares, Statistic


@dataclass(frozen=True)
class Outcome:
    """What a method does to one matrix: zeros where ``mask`` is True, ``weights`` (None: the old ones) elsewhere."""

    mask: Tensor
    weights: Tensor | None = None
    note: str = ""


@dataclass(frozen=True)
class Magnitude:
    """|W|, over the whole matrix. Needs no text."""

    name: ClassVar[str] = "magnitude"
    statistic: ClassVar[None] = None

    def apply(self, weights: Tensor, quota: Quota, seen: Statistic | None = None) -> Outcome:
        """Choose the mask of a float matrix (rows, cols)."""
        found = scores.magnitude(weights)
        if isinstance(quota, Pattern):
            return Outcome(smallest_of_groups(found, quota.n, quota.m))
        return Outcome(smallest(found, quota.count))


@dataclass(frozen=True)
class Wanda:
    """|W_ij| times the norm of input j, within each output row (arXiv 2306.11695).

    ``variant``: rows may differ; each loses up to one common share of its summed score (appendix of
    the paper). The published search for that share stops within 0.001 of the sparsity; here the
    number of zeros is exact.
    """

    name: ClassVar[str] = "wanda"
    statistic: ClassVar[type[Squares]] = Squares

    variant: bool = False

    def apply(self, weights: Tensor, quota: Quota, seen: Statistic | None = None) -> Outcome:
        """Choose the mask of a float matrix (rows, cols) given its inputs."""
        found, note = _seen_scores(weights, seen)
        if isinstance(quota, Pattern):
            if self.variant:
                raise PruneError(
                    "wanda-variant lets rows differ, a pattern does not: use wanda with the pattern"
                )
            return Outcome(smallest_of_groups(found, quota.n, quota.m), note=note)
        if self.variant:
            return Outcome(smallest(scores.removal_share(found), quota.count), note=note)
        return Outcome(smallest_by_row(found, quota.count), note=note)


@dataclass(frozen=True)
class SparseGPT:
    """Optimal brain surgeon from left to right: the weights that stay make up for those that go (arXiv 2301.00774)."""

    name: ClassVar[str] = "sparsegpt"
    statistic: ClassVar[type[Gram]] = Gram

    block_size: int = 128
    damping: float = 0.01

    def __post_init__(self) -> None:
        if (
            isinstance(self.block_size, bool)
            or not isinstance(self.block_size, int)
            or self.block_size < 1
        ):
            raise PruneError(
                f"block_size must be a whole number of at least 1, not {self.block_size!r}"
            )
        if not (math.isfinite(self.damping) and self.damping >= 0):
            raise PruneError(f"damping must be a finite number of at least 0, not {self.damping!r}")

    def apply(self, weights: Tensor, quota: Quota, seen: Statistic | None = None) -> Outcome:
        """Prune a float matrix (rows, cols) given its inputs."""
        if not isinstance(seen, Gram) or not seen.tokens:
            outcome = Magnitude().apply(weights, quota)
            return Outcome(outcome.mask, note=UNSEEN)
        gram = seen.total.to(weights.dtype)
        done = sparsegpt(weights, gram, quota, block_size=self.block_size, damping=self.damping)
        raised = f"the Hessian is not positive definite: damping raised from {self.damping:g} to {done.damping:g}"
        return Outcome(done.mask, done.weights, raised if done.damping > self.damping else "")


UNSEEN = "no calibration token came here: pruned by magnitude"

Method: TypeAlias = Magnitude | Wanda | SparseGPT

BY_NAME: dict[str, Method] = {
    "magnitude": Magnitude(),
    "wanda": Wanda(),
    "wanda-variant": Wanda(variant=True),
    "sparsegpt": SparseGPT(),
}
"""What the command line calls them."""


def as_method(given: Method | str) -> Method:
    """A method given as itself or by name; PruneError for anything else."""
    if isinstance(given, str) and given in BY_NAME:
        return BY_NAME[given]
    if isinstance(given, Method):
        return given
    raise PruneError(f"method must be one of {', '.join(BY_NAME)}, not {given!r}")


def settings(method: Method) -> dict[str, Any]:
    """The method's options as plain JSON values."""
    return {field.name: getattr(method, field.name) for field in fields(method)}


def _seen_scores(weights: Tensor, seen: Statistic | None) -> tuple[Tensor, str]:
    """Wanda's scores; plain magnitudes where no input was seen (an expert that no token was sent to)."""
    if seen is None or not seen.tokens:
        return scores.magnitude(weights), UNSEEN
    return scores.wanda(weights, seen.squares.to(weights.dtype)), ""
