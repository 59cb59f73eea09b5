"""Choose eps, the spread of an allocation's ratios, by the perplexity on a selection text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from spectail.allocation.allocation import Allocation
from spectail.basics.json_values import plain
from spectail.errors import EvaluationError
from spectail.evaluation import Perplexity, Progress, perplexity
from spectail.evaluation.bos import resolve
from spectail.pruning.search import choose

HELD_OUT = 0.1
"""The part at the end of a calibration text that selects eps if no selection text is given. It is
not used for calibration then."""

SEQUENCES = 16
"""The most sequences, from the start of the selection text, that a candidate is scored on."""


@dataclass(frozen=True)
class ChosenEps:
    """The eps with the lowest score, and its allocation."""

    eps: float
    scores: tuple[tuple[float, float], ...]
    """(eps, score) of every candidate; NaN if it could not be scored."""
    allocation: Allocation
    """The allocation of this eps. Its settings hold ``eps`` and, as ``eps_scores``, the scores by
    eps (null if not finite)."""


def hold_out(text: str) -> tuple[str, str]:
    """Cut a text at white space into the first nine tenths, to calibrate, and the rest, to select.

    >>> hold_out("a b c d e f g h i j")
    ('a b c d e f g h i', ' j')
    """
    start = round((1 - HELD_OUT) * len(text))
    # At white space, so that no word is cut in two.
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
    """Prune by each allocation, score the pruned model, and return the allocation that did best.

    Args:
        model: the dense model; its weights are restored bit for bit after each candidate.
        allocations: allocations by eps, all made from the dense model: ``{eps: by_eps(eps) for eps
            in candidates}`` with ``by_eps`` from ``baselines.allocations_by_eps``.
        prune_with: prunes ``model`` in place by an allocation, with the method of the final run.
        score: a number that is lower for a better model, such as the perplexity on a selection
            text. It must not come from the test text.
        progress: called with an eps, its number from 0 on, and the number of candidates.

    Raises:
        PruneError: there are no allocations, or all scores are NaN.

    """
    choice = choose(
        model,
        tuple(allocations),
        prune_with=lambda eps: prune_with(allocations[eps]),
        score=score,
        progress=progress,
    )
    scores = plain({f"{eps:g}": value for eps, value in choice.scores})
    best = allocations[choice.best]
    # The file of the allocation then says how its eps was found.
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
    """Return the perplexity of a pruned model, or NaN if its logits are NaN.

    A broken candidate then loses the selection; an error would end the run. Faults of the text
    are found before, when ``perplexity`` evaluates the dense model on it.
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
