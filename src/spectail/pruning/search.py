"""Choosing a setting, such as eps, by what it does to text held out for that purpose (never the test text)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from spectail.errors import PruneError

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """The candidate of the lowest score, and the scores of all."""

    best: T
    scores: tuple[tuple[T, float], ...]


def choose(
    model: nn.Module,
    candidates: Sequence[T],
    *,
    prune_with: Callable[[T], object],
    score: Callable[[nn.Module], float],
    progress: Callable[[T, int, int], None] | None = None,
) -> Choice[T]:
    """Prune with each candidate, score the pruned model, and put its weights back, bit for bit.

    ``prune_with`` prunes ``model`` in place, ``score`` is lower for the better: a perplexity on
    selection text. Costs one copy of the model's matrices. The first of equal scores wins; a score
    that is no number never does. ``progress`` is called with the candidate in hand, its number from
    0 on, and how many there are.

    Raises:
        PruneError: no candidates, or not one score that is a number.

    """
    if not candidates:
        raise PruneError("there is nothing to choose from: give at least one candidate")
    found = []
    for number, candidate in enumerate(candidates):
        if progress:
            progress(candidate, number, len(candidates))
        with _restored(model):
            prune_with(candidate)
            found.append((candidate, float(score(model))))
    usable = [pair for pair in found if not math.isnan(pair[1])]
    if not usable:
        raise PruneError(
            "the score is NaN for every candidate: check the selection text and the model"
        )
    return Choice(min(usable, key=lambda pair: pair[1])[0], tuple(found))


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Put every parameter that changes back to what it was."""
    before = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in before:
                    parameter.copy_(before[name])
