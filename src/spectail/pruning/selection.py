"""Choosing eps by the perplexity of text held out for it, with the same candidates for every baseline."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from spectail.allocation.allocation import Allocation
from spectail.errors import EvaluationError
from spectail.evaluation import Perplexity, Progress, perplexity
from spectail.evaluation.bos import resolve
from spectail.pruning.search import choose

HELD_OUT = 0.1
"""The last part of a calibration text that is kept from calibration where no other text is given to
choose by."""

SEQUENCES = 16
"""How many sequences of the selection text, from its start, a candidate is scored on at most."""


@dataclass(frozen=True)
class ChosenEps:
    """The eps of the lowest score, and its allocation."""

    eps: float
    scores: tuple[tuple[float, float], ...]
    """(eps, score) of every candidate, NaN for one that could not be scored."""
    allocation: Allocation
    """Its settings hold ``eps`` and the scores by eps, ``eps_scores`` (null where they are not
    finite)."""


def hold_out(text: str) -> tuple[str, str]:
    """Cut a text at white space into what calibrates, the first nine tenths, and the rest, to choose by.

    >>> hold_out("a b c d e f g h i j")
    ('a b c d e f g h i', ' j')
    """
    start = round((1 - HELD_OUT) * len(text))
    space = re.compile(r"\s").search(text, start)
    cut = space.start() if space else start
    return text[:cut], text[cut:]


def choose_eps(
    model: nn.Module,
    allocations: Mapping[float, Allocation],
    *,
    prune_with: Callable[[Allocation], object],
    score: Callable[[nn.Module], float],
    progress: Callable[[float, int, int], None] | None = None,
) -> ChosenEps:
    """Prune by each allocation, score the pruned model, restore its weights, and give the allocation that did best.

    Args:
        model: dense; its weights are back as they were afterwards, bit for bit.
        allocations: by eps, all made from the dense model: ``{eps: by_eps(eps) for eps in
            candidates}`` with ``by_eps`` of ``baselines.allocations_by_eps``.
        prune_with: prunes ``model`` in place by an allocation, as it will be pruned in the end.
        score: lower for the better, such as the perplexity on a selection text; never on the test
            text.
        progress: called with the eps in hand, its number from 0 on, and how many there are.

    Raises:
        PruneError: no allocations, or not one score that is a number.

    """
    choice = choose(
        model,
        tuple(allocations),
        prune_with=lambda eps: prune_with(allocations[eps]),
        score=score,
        progress=progress,
    )
    scores = {f"{eps:g}": value if math.isfinite(value) else None for eps, value in choice.scores}
    best = allocations[choice.best]
    settings = {**best.settings, "eps": choice.best, "eps_scores": scores}
    return ChosenEps(choice.best, choice.scores, replace(best, settings=settings))


def perplexity_or_nan(
    model: nn.Module,
    tokenizer: Any,
    text: str,
    *,
    seq_len: int,
    max_sequences: int | None = None,
    bos: str = "auto",
    progress: Progress | None = None,
) -> Perplexity:
    """The perplexity of a pruned model, or NaN where its logits are NaN.

    So a bad candidate loses, and the pruning is not lost. Whatever else could be wrong shows when
    the dense model is evaluated on the same text with ``perplexity``.
    """
    try:
        return perplexity(
            model,
            tokenizer,
            text,
            seq_len=seq_len,
            max_sequences=max_sequences,
            bos=bos,
            progress=progress,
        )
    except EvaluationError:
        return Perplexity([math.nan], seq_len=seq_len, bos=resolve(bos, tokenizer, model).rule)
