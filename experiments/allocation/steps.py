"""What is measured, step by step; each step is kept in the journal the moment it is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from torch import Tensor

import spectail as st
from experiments.allocation.rules import (
    ACTIVATIONS,
    ALPHA,
    CONTROLS,
    DEPTH,
    DEPTH_KIND,
    FIXED,
    RULES,
    SPECS,
    WITHOUT_EPS,
    Measured,
    ratios,
    with_offsets,
)
from experiments.allocation.subjects import Subject, distance
from experiments.common import Journal
from experiments.pruning.texts import Texts
from spectail.pruning.allocators import default_allocator
from spectail.pruning.calibration import calibration_tokens
from spectail.pruning.methods import as_method

FINALISTS = 3
"""How many rules beside the named ones go on to test text: the best on selection text."""
Step = tuple[str, Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of a run; the defaults are those of the results that are kept here."""

    targets: tuple[tuple[str, float], ...] = (
        ("magnitude", 0.5),
        ("wanda", 0.6),
        ("sparsegpt", 0.6),
    )
    eps: tuple[float, ...] = (0.1, 0.2, 0.35, 0.6)
    """The same candidates for every rule that has an eps."""
    draws: int = 3
    """Draws of calibration and test text; settings are chosen on the first."""
    seq_len: int = 512
    calibration: int = 16
    selection: int = 6
    tests: int = 8
    harder: float | None = None
    """A sparsity at which the finalists of every method are compared once more."""

    def candidates(self, rule: str) -> tuple[float | None, ...]:
        """What is tried for a rule."""
        return (None,) if rule in WITHOUT_EPS else self.eps

    @property
    def harder_targets(self) -> tuple[tuple[str, float], ...]:
        """The methods of ``targets`` at the sparsity ``harder``."""
        return () if self.harder is None else tuple((m, self.harder) for m, _ in self.targets)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without ``harder``: it adds steps with keys of their own and changes none."""
        return {key: value for key, value in asdict(self).items() if key != "harder"}


class Experiment:
    """The steps over one model and its texts."""

    def __init__(
        self,
        subject: Subject,
        tokenizer: Any,
        texts: Texts,
        *,
        settings: Settings,
        journal: Journal,
    ) -> None:
        self.subject, self.tokenizer, self.texts = subject, tokenizer, texts
        self.settings, self.journal = settings, journal
        self._drawn: dict[Any, Tensor] = {}
        self._seen: dict[int, Any] = {}
        self._norms: list[Tensor] | None = None

    def measuring(self) -> Iterator[Step]:
        """What the rules look at, and the dense model."""
        for spec in SPECS:
            yield f"alphas | {spec}", partial(self.subject.alphas, SPECS[spec])
        yield "variances", self.subject.variances
        for draw in range(self.settings.draws):
            yield f"activations | {draw}", partial(self._activations, draw)
            yield f"dense | {draw}", partial(self._tests, draw)
        targets = (*self.settings.targets, *self.settings.harder_targets)
        for sparsity in dict.fromkeys(s for _, s in targets):
            yield f"fixed | {sparsity:g}", partial(self.subject.fixed, sparsity)

    def selecting(self, target: tuple[str, float], rules: Iterable[str] = RULES) -> Iterator[Step]:
        """Rules with every candidate, on selection text; SparseGPT takes Wanda's choice."""
        if target[0] == "sparsegpt":
            return
        for rule in rules:
            for eps in self.settings.candidates(rule):
                yield select_key(target, rule, eps), partial(self._select, target, rule, eps)

    def testing(self, target: tuple[str, float], rules: Iterable[str]) -> Iterator[Step]:
        """The chosen settings on test text, all rules of a draw before the next draw."""
        rules = list(rules)
        for draw in range(self.settings.draws):
            for rule in rules:
                yield test_key(target, rule, draw), partial(self._test, target, rule, draw)

    def _select(
        self, target: tuple[str, float], rule: str, eps: float | None
    ) -> tuple[float, float]:
        """Perplexity and NeuroAL's distance, pruned by the statistics of the dense model."""
        tokens = self._tokens("selection", 0)
        if self._norms is None:
            self._norms = self.subject.score_and_norms(tokens)[1]
        seen = self._statistics(0) if target[0] != "magnitude" else None
        with self.subject.borrowed():
            self.subject.prune_at_once(self._ratios(target, rule, eps, 0), target[0], seen)
            found, norms = self.subject.score_and_norms(tokens)
        return found, distance(self._norms, norms)

    def _test(self, target: tuple[str, float], rule: str, draw: int) -> dict[str, Any]:
        """Perplexity on the test texts, pruned block by block as ``st.prune`` does."""
        method = target[0]
        eps = chosen(self.journal.done, self.settings, target, rule)
        with self.subject.borrowed() as model:
            tokens = None if method == "magnitude" else self._tokens("calibration", draw)
            report = st.prune(
                model,
                self._ratios(target, rule, eps, draw),
                method=method,
                calibration=tokens,
            )
            return self._tests(draw) | {"eps": eps, "sparsity": report.realised}

    def _ratios(
        self, target: tuple[str, float], rule: str, eps: float | None, draw: int
    ) -> dict[str, float]:
        return ratios(rule, eps, target[1], self.measured(target[1], draw))

    def measured(self, sparsity: float, draw: int) -> Measured:
        """What rules look at, from the journal."""
        done = self.journal.done
        return Measured(
            layers=self.subject.layers(),
            alphas={spec: done[f"alphas | {spec}"] for spec in SPECS},
            variances=done["variances"],
            blocks=done[f"activations | {draw}"],
            fixed=done[f"fixed | {sparsity:g}"],
        )

    def _activations(self, draw: int) -> dict[str, dict[str, float]]:
        return self.subject.activations(self._statistics(draw))

    def _statistics(self, draw: int) -> Any:
        if draw not in self._seen:
            self._seen[draw] = self.subject.statistics(self._tokens("calibration", draw))
        return self._seen[draw]

    def _tests(self, draw: int) -> dict[str, float]:
        return {name: self.subject.score(self._tokens(name, draw)) for name in self.texts.tests}

    def _tokens(self, what: str, draw: int) -> Tensor:
        """Sequences (n, seq_len) of a text, drawn by seed; BOS as the model needs it."""
        if (what, draw) not in self._drawn:
            text, samples = self._text(what)
            self._drawn[what, draw] = calibration_tokens(
                self.tokenizer,
                text,
                samples=samples,
                seq_len=self.settings.seq_len,
                seed=draw,
                model=self.subject.model,
            )
        return self._drawn[what, draw]

    def _text(self, what: str) -> tuple[str, int]:
        """A text, and how many samples are drawn from it."""
        return {
            "calibration": (self.texts.calibration, self.settings.calibration),
            "selection": (self.texts.selection, self.settings.selection),
            **{name: (text, self.settings.tests) for name, text in self.texts.tests.items()},
        }[what]


def scores(
    done: Mapping[str, Any], settings: Settings, target: tuple[str, float], rule: str, by: int = 0
) -> dict[float | None, float]:
    """What was scored on selection text: perplexity (``by`` 0) or NeuroAL's distance (1)."""
    found = {eps: done.get(select_key(target, rule, eps)) for eps in settings.candidates(rule)}
    return {
        eps: math.inf if pair[by] is None else pair[by]
        for eps, pair in found.items()
        if pair is not None
    }


def selected_by(target: tuple[str, float]) -> tuple[str, float]:
    """The target on which a setting is chosen: SparseGPT takes Wanda's choice."""
    return ("wanda", target[1]) if target[0] == "sparsegpt" else target


def chosen(
    done: Mapping[str, Any], settings: Settings, target: tuple[str, float], rule: str
) -> float | None:
    """The eps of the lowest perplexity on selection text."""
    found = scores(done, settings, selected_by(target), rule)
    return min(found, key=lambda eps: found[eps])


def finalists(done: Mapping[str, Any], settings: Settings, target: tuple[str, float]) -> list[str]:
    """The rules that are tested: the controls and rules by alpha as they stand, and the best.

    Of the forms of depth, with and without offsets, the best on selection text and the first block
    are tested, and the form that ``spectail prune`` takes without a choice; of ``FIXED`` the best,
    of the attempts the ``FINALISTS`` best. At the harder sparsity all of these are compared again
    but for what came out far behind (``er``, DSA, ``FIXED``) and all attempts but the best.
    """
    easier = dict(settings.targets).get(target[0], target[1])
    by = selected_by((target[0], easier))
    best = {rule: min(scores(done, settings, by, rule).values()) for rule in RULES}
    depth, with_kind, fixed = (min(x, key=best.__getitem__) for x in (DEPTH, DEPTH_KIND, FIXED))
    default = default_allocator(None, by_inputs=as_method(target[0]).statistic is not None)
    unchosen = with_offsets(default.form)
    by_depth = (depth, "depth: first", with_kind, "first, offsets", unchosen)
    named = dict.fromkeys(["uniform", *by_depth, *ACTIVATIONS, fixed, "er", *ALPHA])
    trials = [rule for rule in RULES if rule not in (*CONTROLS, *DEPTH_KIND, *ALPHA)]
    trials.sort(key=best.__getitem__)
    if target in settings.harder_targets:
        return [*(rule for rule in named if rule not in ("er", "dsa", fixed)), trials[0]]
    return [*named, *trials[:FINALISTS]]


def select_key(target: tuple[str, float], rule: str, eps: float | None) -> str:
    """The step that scores a setting."""
    return f"select | {target[0]} {target[1]:g} | {rule} | {'' if eps is None else f'{eps:g}'}"


def test_key(target: tuple[str, float], rule: str, draw: int) -> str:
    """The step that tests the chosen setting."""
    return f"test | {target[0]} {target[1]:g} | {rule} | {draw}"
