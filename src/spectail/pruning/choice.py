"""Choose among allocations by pruning with each one and scoring the pruned model.

The score must not come from the test text; use text that is held out for the choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import nn

from spectail.allocation.allocation import Allocation
from spectail.errors import EvaluationError, PruneError
from spectail.evaluation import Perplexity, Progress, perplexity
from spectail.evaluation.bos import resolve
from spectail.models.live.restored import restored
from spectail.pruning.setting import Setting

T = TypeVar("T")

SEQUENCES = 16
"""The most sequences, from the start of the selection text, that a candidate is scored on."""


@dataclass(frozen=True)
class Choice(Generic[T]):
    """The candidate with the lowest score, and the scores of all candidates."""

    best: T
    scores: tuple[tuple[T, float], ...]


def choose(
    model: nn.Module,
    candidates: Sequence[T],
    *,
    prune_with: Callable[[T], object],
    score: Callable[[nn.Module], float],
    progress: Callable[[T, int, int], None] | None = None,
    known: Callable[[T], float | None] = lambda candidate: None,
    keep: Callable[[T, float], None] = lambda candidate, score: None,
) -> Choice[T]:
    """Prune with each candidate, score the pruned model, and restore its weights bit for bit.

    ``prune_with`` prunes ``model`` in place. A lower ``score`` is better, such as a perplexity on
    selection text. Of equal scores the first wins; NaN never does. ``progress`` is called with a
    candidate, its number from 0 on, and the number of candidates. ``keep`` gets every new score,
    and a candidate is not pruned if its score is ``known``. The memory cost is one copy of the
    model's matrices.

    Raises:
        PruneError: there are no candidates, or all scores are NaN.

    """
    if not candidates:
        raise PruneError("there is nothing to choose from: give at least one candidate")
    found = []
    for number, candidate in enumerate(candidates):
        if progress:
            progress(candidate, number, len(candidates))
        before = known(candidate)
        if before is not None:
            found.append((candidate, before))
            continue
        # Also after an error or Ctrl-C, so that the caller always gets the dense model back.
        # Vectors such as norms and biases are never pruned, so they need no copy.
        with restored(p for p in model.parameters() if p.ndim > 1):
            prune_with(candidate)
            found.append((candidate, float(score(model))))
        keep(*found[-1])
    # min() would keep a NaN that comes first, because no comparison with NaN is true.
    usable = [pair for pair in found if not math.isnan(pair[1])]
    if not usable:
        raise PruneError(
            "the score is NaN for every candidate: check the selection text and the model"
        )
    return Choice(min(usable, key=lambda pair: pair[1])[0], tuple(found))


def with_choice(allocations: Mapping[Setting, Allocation], choice: Choice[Setting]) -> Allocation:
    """Return the chosen allocation, whose settings hold how it was chosen.

    Its file then has the chosen ``eps`` (and ``form``), and as ``eps_scores`` the scores of all
    settings, null if not finite.
    """
    scores = {s.key: value if math.isfinite(value) else None for s, value in choice.scores}
    best, setting = allocations[choice.best], choice.best
    form = {"form": setting.form} if setting.form else {}
    settings = {**best.settings, "eps": setting.eps, **form, "eps_scores": scores}
    return replace(best, settings=settings)


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
