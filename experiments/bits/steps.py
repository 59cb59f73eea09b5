"""What is measured, step by step; each step is kept in the journal the moment it is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

import spectail as st
from experiments.bits.rules import RULES, WIDTHS, Layers, real_bits, widths
from experiments.bits.subject import Subject
from experiments.common import Journal
from experiments.pruning.texts import Texts
from spectail import presets
from spectail.core.quantisers import Integers, relative_error
from spectail.models.naming.blocks import block_of
from spectail.pruning.calibration import calibration_tokens
from spectail.sensitivity.measure import sensitivity_of
from spectail.sensitivity.predictions import Predictions

FIRST = ["uniform", "relative error"]
NOISE = "error and noise"
"""The one rule that needs text."""
Step = tuple[str, Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of a run; the defaults are those of the results that are kept here."""

    budgets: tuple[int, ...] = (3, 4)
    """Sizes: those of the uniform widths, scales included."""
    draws: int = 3
    seq_len: int = 512
    selection: int = 4
    tests: int = 3
    """Sequences of each test text in a draw."""
    noise_tokens: tuple[int, int] = (2, 256)
    noise: float = 0.05
    """t^2 of the noise, about that of 3 bits."""
    dtype: str = "bfloat16"
    """Of the evaluation; weights are rounded in float32."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


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
        self._dense: Predictions | None = None

    def steps(self) -> Iterator[Step]:
        """First the default against the uniform width, then the others; further draws last."""
        yield "layers", self.layers
        yield "dense | selection", partial(self._perplexity, "selection", 0)
        for rules in (FIRST, [rule for rule in RULES if rule not in (*FIRST, NOISE)], [NOISE]):
            if rules == [NOISE]:
                yield from self._noise()
            for budget in self.settings.budgets:
                yield from self._selection(budget, rules)
            for budget in self.settings.budgets:
                yield from self._tests(budget, rules, 0)
        yield "dense | 0", partial(self.dense, 0)
        for draw in range(1, self.settings.draws):
            yield f"dense | {draw}", partial(self.dense, draw)
            for budget in self.settings.budgets:
                yield from self._tests(budget, list(RULES), draw)

    def layers(self) -> dict[str, Any]:
        """Errors of the quantiser, variances and alphas of every layer."""
        named = list(zip(self.subject.weights, self.subject.first, strict=True))
        state = {f"{weight.name}.weight": values for weight, values in named}
        records, alphaq = (
            {layer.name: layer for layer in st.analyze(state, spec=spec).layers}
            for spec in (presets.FARMS, presets.ALPHAQ)
        )
        return {
            weight.name: {
                "kind": records[weight.name].kind,
                "block": records[weight.name].block,
                "shape": list(values.shape),
                "variance": records[weight.name].weight_var,
                "alpha": records[weight.name].alpha,
                "alphaq": alphaq[weight.name].alpha,
                "errors": [relative_error(Integers(bits), values) for bits in WIDTHS],
            }
            for weight, values in named
        }

    def measured(self) -> Layers:
        """What the rules look at, from the journal."""
        return layers_of(self.journal.done)

    def select(self, budget: int, rule: str, candidate: float) -> dict[str, Any]:
        """Perplexity on selection text."""
        chosen = widths(self.measured(), rule, candidate, budget)
        text = "".join(map(str, chosen.values()))
        # Rules of few layers often agree; equal widths have equal perplexities.
        same = [v for k, v in self.journal.done.items() if k.startswith("select")]
        known = next((v["perplexity"] for v in same if v["widths"] == text), None)
        if known is None:
            self.subject.round_weights(chosen)
            known = self._perplexity("selection", 0)
        return {"perplexity": known, "widths": text}

    def test(self, budget: int, rule: str, draw: int) -> dict[str, Any]:
        """Perplexity on test texts with the candidate that selection text chose."""
        candidate = chosen_candidate(self.journal.done, budget, rule)
        layers = self.measured()
        chosen = widths(layers, rule, candidate, budget)
        text = "".join(map(str, chosen.values()))
        found = {"candidate": candidate, "bits": real_bits(layers, chosen), "widths": text}
        done = [v for k, v in self.journal.done.items() if k.endswith(f" | {draw}") and "test" in k]
        same = next((v["texts"] for v in done if v["widths"] == text), None)
        if same is None:
            self.subject.round_weights(chosen)
            same = self._on_tests(draw)
        return found | {"texts": same}

    def dense(self, draw: int) -> dict[str, float]:
        """Perplexity of the model as it was, on test texts."""
        self.subject.restore()
        return self._on_tests(draw)

    def noise(self, block: int) -> dict[str, float]:
        """Sensitivities of the layers of a block."""
        self.subject.restore()
        if self._dense is None:
            self._dense = Predictions(self.subject.model, self._noise_tokens())
        # The seeds of ``st.sensitivities``, which cannot be given one block of many.
        return {
            weight.name: sensitivity_of(weight, self._dense, noise=self.settings.noise, seed=i)
            for i, weight in enumerate(self.subject.weights)
            if block_of(weight.name) == block
        }

    def _noise(self) -> Iterator[Step]:
        # Steps are listed before the first is done, so that blocks come from the names.
        blocks = (block_of(weight.name) for weight in self.subject.weights)
        for block in sorted({block for block in blocks if block is not None}):
            yield f"noise | {block}", partial(self.noise, block)

    def _selection(self, budget: int, rules: list[str]) -> Iterator[Step]:
        for rule in rules:
            for candidate in RULES[rule].candidates:
                yield (
                    select_key(budget, rule, candidate),
                    partial(self.select, budget, rule, candidate),
                )

    def _tests(self, budget: int, rules: list[str], draw: int) -> Iterator[Step]:
        for rule in rules:
            yield test_key(budget, rule, draw), partial(self.test, budget, rule, draw)

    def _on_tests(self, draw: int) -> dict[str, float]:
        """Perplexity of the weights as they stand, by test text."""
        return {name: self._perplexity(name, draw) for name in self.texts.tests}

    def _perplexity(self, text: str, draw: int) -> float:
        return self.subject.perplexity(self._tokens(text, draw))

    def _tokens(self, what: str, draw: int) -> Tensor:
        """Token blocks (n, seq_len) of a text, with BOS where the model needs it."""
        if (what, draw) not in self._drawn:
            text = self.texts.selection if what == "selection" else self.texts.tests[what]
            settings = self.settings
            self._drawn[what, draw] = calibration_tokens(
                self.tokenizer,
                text,
                samples=settings.selection if what == "selection" else settings.tests,
                seq_len=settings.seq_len,
                seed=draw,
                model=self.subject.model,
            )
        return self._drawn[what, draw]

    def _noise_tokens(self) -> Tensor:
        samples, seq_len = self.settings.noise_tokens
        return calibration_tokens(
            self.tokenizer,
            self.texts.calibration,
            samples=samples,
            seq_len=seq_len,
            model=self.subject.model,
        )


def layers_of(done: Mapping[str, Any]) -> Layers:
    """The arrays that rules look at, with sensitivities once all of them are measured."""
    found: dict[str, Any] = done["layers"]
    rows = list(found.values())

    def column(name: str) -> Any:
        return np.array([row[name] for row in rows], dtype=np.float64)

    layers = Layers(
        names=tuple(found),
        kinds=tuple(row["kind"] for row in rows),
        block=np.array([row["block"] for row in rows]),
        shapes=tuple((row["shape"][0], row["shape"][1]) for row in rows),
        variance=column("variance"),
        errors=column("errors"),
        alpha=column("alpha"),
        alphaq=column("alphaq"),
    )
    noise = {
        k: v
        for key, part in done.items()
        if key.startswith("noise") and part
        for k, v in part.items()
    }
    if set(noise) != set(found):
        return layers
    return replace(layers, sensitivity=np.array([noise[name] for name in found]))


def chosen_candidate(done: Mapping[str, Any], budget: int, rule: str) -> float:
    """The candidate of least perplexity on selection text."""
    scores = {c: done[select_key(budget, rule, c)] for c in RULES[rule].candidates}
    return min(scores, key=lambda c: number(scores[c]["perplexity"]))


def select_key(budget: int, rule: str, candidate: float) -> str:
    """The step that scores a candidate."""
    return f"select | {budget} | {rule} | {candidate:g}"


def test_key(budget: int, rule: str, draw: int) -> str:
    """The step that tests the chosen candidate."""
    return f"test | {budget} | {rule} | {draw}"


def number(value: float | None) -> float:
    """The journal keeps infinities as null."""
    return math.inf if value is None else value
