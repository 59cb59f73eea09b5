"""A whole pruning run in memory: allocate, choose eps, prune, and measure perplexity.

Eps is how far the ratios of an allocation go from their mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from spectail.allocation.allocation import Allocation
from spectail.basics.checks import check_whole
from spectail.errors import EvaluationError, PruneError
from spectail.evaluation import Perplexity, perplexity
from spectail.evaluation.bos import Rule, resolve
from spectail.models.formats.fingerprint import digest_of
from spectail.models.live.identity import configuration_digest, tokens_digest
from spectail.models.live.walk import module_source
from spectail.models.naming.select import ALL_KINDS, KindFilter
from spectail.pruning.allocators import Allocator, uniform
from spectail.pruning.calibration import calibration_tokens, check_draw
from spectail.pruning.choice import SEQUENCES, Choice, choose, perplexity_or_nan, with_choice
from spectail.pruning.kept_scores import KeptScores
from spectail.pruning.methods import Method
from spectail.pruning.prune import PruningInterrupted, prune
from spectail.pruning.quotas import Pattern
from spectail.pruning.reached_layers import scope_of
from spectail.pruning.report import Evaluated, PruneReport, Selected
from spectail.pruning.setting import Setting
from spectail.pruning.texts import Text, Texts
from spectail.pruning.weights_to_prune import Scope


class StepProgress(Protocol):
    """A function that a run calls at each step and during it."""

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Show the step ``what``: ``done`` of ``total`` parts; ``total=None`` if it has none."""


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """The settings of a run, which hold for any model."""

    method: Method
    sparsity: float
    allocator: Allocator
    """The rule that shares out the sparsity."""
    eps: float | Literal["auto"] | None = None
    """A value, ``auto`` to choose one on the selection text, or None for the published default."""
    pattern: Pattern | None = None
    samples: int = 128
    """The number of calibration sequences."""
    seq_len: int = 2048
    """The number of tokens in a sequence, the same for all texts."""
    max_sequences: int | None = None
    """How many sequences of a test text are evaluated; None for all."""
    seed: int = 0
    """Seed of the draw of calibration sequences."""
    include: tuple[str, ...] = ()
    """Globs of layers to prune that would stay dense by default."""
    exclude: tuple[str, ...] = ()
    """Globs of layers that stay dense."""
    of: KindFilter = ALL_KINDS
    """Kinds and types of layers to prune; others stay dense."""
    bos: str = "auto"
    """Where the beginning-of-sequence token (BOS) goes in all texts: see ``evaluation.bos``."""

    def __post_init__(self) -> None:
        # All that can be refused without the model, which takes long to load.
        check_draw(self.samples, self.seq_len, self.seed)
        if self.max_sequences is not None:
            check_whole(PruneError, max_sequences=self.max_sequences)
        self.allocator.check_budget(self.sparsity)
        self.allocator.check_scope(Scope(self.include, self.exclude, self.of))
        if self.pattern:
            self.method.check_pattern(self.pattern)
            self.pattern.check_mean(self.sparsity)

    @property
    def calibrates(self) -> bool:
        """Whether calibration text is needed."""
        return self.method.statistic is not None or self.allocator.needs_text


@dataclass(frozen=True)
class Pruned:
    """The result of a run; the model itself is pruned in place."""

    plan: PruningPlan
    allocation: Allocation
    report: PruneReport
    others: Mapping[str, Allocation] = field(default_factory=dict)
    """Other allocations of the same sparsity, by a short name, to show beside the one used."""


def run(
    model: nn.Module,
    tokenizer: Any,
    plan: PruningPlan,
    texts: Texts,
    *,
    progress: StepProgress,
    keep: Path | None = None,
) -> Pruned:
    """Prune ``model`` in place as planned, and evaluate it before and after.

    The dense model is evaluated first and on all texts, so that a fault of a text shows before the
    long work. One rule for BOS holds for all texts. Scores by which eps is chosen are kept in the
    file ``keep``: the same run after a kill takes them from there.
    """
    bos = _bos(model, tokenizer, plan, texts)
    # Resolved once, for the dense model: a pruned one must not change the rule.
    plan = plan if bos is None else replace(plan, bos=bos)
    tokens = _calibration(model, tokenizer, plan, texts)
    # One scope for all allocations, so that they differ in their ratios alone.
    scope = scope_of(model, tokens, plan.include, plan.exclude, plan.of)
    scores = _Scores(model, tokenizer, plan, progress)
    # Before pruning, because the model is pruned in place.
    dense = [scores.dense(text, plan.max_sequences) for text in texts.tests]
    # A fixed eps needs no selection, whatever texts were given.
    selection = texts.selection if plan.eps == "auto" else None
    dense_selection = scores.dense(selection, SEQUENCES) if selection else None
    progress(f"sharing out the sparsity: {plan.allocator.name}", 0, None)
    candidates, chosen = _allocations(model, plan, tokens, scope)
    apply = partial(prune, model, method=plan.method, calibration=tokens, pattern=plan.pattern)
    selected = None
    if selection and dense_selection:
        kept = KeptScores.open(keep, _identity(model, plan, tokens, selection, candidates))
        choice = _choose(scores, selection, candidates, apply, kept)
        chosen = with_choice(candidates, choice)
        selected = Selected(selection.name, choice.best, dense_selection, choice.scores)
    report = apply(
        chosen, progress=lambda name, done, total: progress(name or "pruned", done, total)
    )
    evaluated = tuple(
        Evaluated(text.name, before, scores.pruned(text, plan.max_sequences))
        for text, before in zip(texts.tests, dense, strict=True)
    )
    # The allocation may have read the text although the method did not.
    shape = None if tokens is None else (tokens.shape[0], tokens.shape[1])
    report = replace(report, evaluated=evaluated, selected=selected, bos=bos, calibration=shape)
    return Pruned(plan, chosen, report, _others(model, plan, chosen, candidates, scope))


def _bos(model: nn.Module, tokenizer: Any, plan: PruningPlan, texts: Texts) -> Rule | None:
    """Return the rule for BOS in all texts of the run; None if it reads no text."""
    if not ((plan.calibrates and texts.calibration) or plan.eps == "auto" or texts.tests):
        return None
    return resolve(plan.bos, tokenizer, model).rule


def _calibration(
    model: nn.Module, tokenizer: Any, plan: PruningPlan, texts: Texts
) -> Tensor | None:
    """Draw the calibration tokens; None if the run needs none or has no text for them."""
    if not plan.calibrates or texts.calibration is None:
        return None
    return calibration_tokens(
        tokenizer,
        texts.calibration.text,
        samples=plan.samples,
        seq_len=plan.seq_len,
        seed=plan.seed,
        bos=plan.bos,
        model=model,
    )


def _allocations(
    model: nn.Module, plan: PruningPlan, tokens: Tensor | None, scope: Scope
) -> tuple[Mapping[Setting, Allocation], Allocation]:
    """Return the allocations by setting (none if there is nothing to set), and the planned one."""
    make = plan.allocator.prepare(model, plan.sparsity, calibration=tokens, scope=scope)
    # Computed even if eps is given: the page shows them beside it.
    candidates = {setting: make(setting) for setting in make.settings}
    return candidates, make(None if plan.eps == "auto" else plan.eps)


def _others(
    model: nn.Module,
    plan: PruningPlan,
    chosen: Allocation,
    candidates: Mapping[Setting, Allocation],
    scope: Scope,
) -> Mapping[str, Allocation]:
    """Return the allocations that the page shows as lines beside the one used.

    They cost no further measurement. Of a rule with several forms only those of the form used: all
    of them would hide each other.
    """
    form = chosen.settings.get("form", "")
    found = {
        str(setting): other
        for setting, other in candidates.items()
        if dict(other) != dict(chosen) and setting.form == (form if setting.form else "")
    }
    if plan.allocator.name != "uniform":
        found["uniform"] = uniform(model, plan.sparsity, scope=scope)
    return found


def _identity(
    model: nn.Module,
    plan: PruningPlan,
    tokens: Tensor | None,
    selection: Text,
    candidates: Mapping[Setting, Allocation],
) -> dict[str, Any]:
    """Return what the scores of the candidates depend on, as plain JSON values."""
    ratios = {setting.key: dict(allocation) for setting, allocation in candidates.items()}
    return {
        "model": module_source(model).fingerprint,
        "method": [plan.method.name, plan.method.settings()],
        "pattern": str(plan.pattern or ""),
        "allocation": [plan.allocator.name, plan.sparsity, digest_of(json.dumps(ratios).encode())],
        "configuration": configuration_digest(model),
        "calibration": "" if tokens is None else tokens_digest(tokens),
        "selection": [digest_of(selection.text.encode()), plan.seq_len, plan.bos],
        "version of spectail": metadata.version("spectail"),
    }


@dataclass(frozen=True)
class _Scores:
    """Measures perplexities of one model before and after pruning."""

    model: nn.Module
    tokenizer: Any
    plan: PruningPlan
    progress: StepProgress

    def dense(self, text: Text, most: int | None) -> Perplexity:
        """Return the perplexity of the dense model on a text; an error names the text."""
        try:
            return perplexity(
                self.model, self.tokenizer, text.text,
                seq_len=self.plan.seq_len, max_sequences=most,
                bos=self.plan.bos, progress=partial(self.progress, f"dense: {text.name}"),
            )  # fmt: skip
        except EvaluationError as error:
            raise EvaluationError(f"{text.name}: {error}") from None

    def pruned(self, text: Text, most: int | None, *, of: str = "pruned") -> Perplexity:
        """Return the perplexity of the pruned model on a text; NaN if its logits are NaN."""
        return perplexity_or_nan(
            self.model, self.tokenizer, text.text, seq_len=self.plan.seq_len, max_sequences=most,
            bos=self.plan.bos, progress=partial(self.progress, f"{of}: {text.name}"),
        )  # fmt: skip


def _choose(
    scores: _Scores,
    text: Text,
    candidates: Mapping[Setting, Allocation],
    apply: Callable[..., PruneReport],
    kept: KeptScores,
) -> Choice[Setting]:
    """Choose the setting on the selection text; each one is pruned as the model will be."""
    in_hand = ""

    def next_one(setting: Setting, number: int, total: int) -> None:
        nonlocal in_hand
        in_hand = f"{setting} ({number + 1} of {total})"

    def prune_with(setting: Setting) -> object:
        return apply(
            candidates[setting],
            progress=lambda name, *done: scores.progress(f"{in_hand}: {name or 'pruned'}", *done),
        )

    def score(model: nn.Module) -> float:
        return scores.pruned(text, SEQUENCES, of=in_hand)

    try:
        return choose(
            scores.model,
            tuple(candidates),
            prune_with=prune_with,
            score=score,
            progress=next_one,
            known=kept.get,
            keep=kept.add,
        )
    except PruningInterrupted:
        # The report of a candidate is of no use: its weights are restored.
        raise KeyboardInterrupt("interrupted while eps was chosen") from None
