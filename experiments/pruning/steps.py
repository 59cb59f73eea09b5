"""What is measured, step by step.

Each step is kept when it is done; later ones read earlier ones from the journal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import spectail as st
from experiments.common import Journal
from experiments.pruning.allocations import MAIN, PARTS, RULES, VARIANTS, Rule, block_alphas, ratios
from experiments.pruning.bench import Bench
from experiments.pruning.texts import Texts
from spectail.allocation.units import standardized_by_kind
from spectail.pruning.allocators import uniform
from spectail.pruning.allocators.by_activations import measure_blocks, outlier_percent
from spectail.pruning.calibration import calibration_tokens

FINALISTS = 2
"""How many that are not in the comparison are tested as well."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of a run; the defaults are the grid whose results are kept here.

    float32 on a CPU: bfloat16 is twice as fast on those that compute with it,
    and many times slower on others.
    """

    targets: tuple[tuple[str, float], ...] = (
        ("magnitude", 0.5),
        ("wanda", 0.6),
        ("sparsegpt", 0.6),
    )
    eps: tuple[float, ...] = (0.1, 0.3)
    eps_magnitude: tuple[float, ...] = (0.1, 0.3, 0.4)
    seeds: int = 3
    seq_len: int = 512
    calibration: int = 32
    selection: int = 10
    tests: int = 20
    dtype: str = "float32"

    def eps_of(self, method: str, name: str) -> tuple[float | None, ...]:
        """The candidates, the same for every allocation but the uniform one.

        The uniform one has nothing to choose.
        """
        if name == "uniform":
            return (None,)
        return self.eps_magnitude if method == "magnitude" else self.eps

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


FULL = Settings(
    targets=tuple(
        (method, s) for s in (0.4, 0.5, 0.6, 0.7) for method in ("magnitude", "wanda", "sparsegpt")
    ),
    eps=(0.05, 0.1, 0.2, 0.3, 0.4),
    eps_magnitude=(0.05, 0.1, 0.2, 0.3, 0.4),
    seq_len=2048,
    calibration=128,
    dtype="bfloat16",
)
"""The grid for a GPU."""


class Experiment:
    """The steps over one model and its texts."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        texts: Texts,
        *,
        settings: Settings,
        journal: Journal,
        work: Path,
    ) -> None:
        self.bench, self.settings, self.journal, self.work = Bench(model), settings, journal, work
        self.tokenizer, self.texts = tokenizer, texts
        self._drawn: dict[Any, Tensor] = {}
        self._analyses: dict[str, st.Analysis] = {}
        self._seen: dict[int, Any] = {}

    def steps(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The comparison.

        On selection text what windows and cutoff bring each, and attempts to do better.
        """
        for seed in range(self.settings.seeds):
            yield f"dense | {seed}", partial(self.dense, seed)
            yield f"outliers | {seed}", partial(self.outliers, seed)
        yield from self._selection(MAIN)
        yield from self._tested(MAIN)
        yield from self._selection(PARTS)
        yield from self._selection(VARIANTS)

    def finals(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Once all steps are done, test the best of them.

        First the best on test text, then all that the windows and the cutoff bring.
        """
        yield from self._tested(finalists(self.journal.done, self.settings))
        yield from self._tested(PARTS)

    def _selection(self, rules: Mapping[str, Rule]) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The steps that choose eps, SparseGPT's left out: it takes Wanda's."""
        for name, rule in rules.items():
            if rule.spec:
                yield f"alphas | {name}", partial(self.alphas, name)
        for method, sparsity in self.settings.targets:
            if method == "sparsegpt":
                continue
            for name in rules:
                for eps in self.settings.eps_of(method, name):
                    yield (
                        selection_key(method, sparsity, name, eps),
                        partial(self.select, method, sparsity, name, eps),
                    )

    def _tested(self, rules: Iterable[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The chosen settings, method by method, on test text with every seed."""
        for method, sparsity in self.settings.targets:
            for seed in range(self.settings.seeds):
                for name in rules:
                    key = test_key(method, sparsity, name, seed)
                    yield key, partial(self.test, method, sparsity, name, seed)

    def dense(self, seed: int) -> dict[str, float]:
        """Perplexity of the model as it is, by text, and on the selection text."""
        return self._tests(seed) | {
            "selection": self.bench.perplexity(self._tokens("selection", 0))
        }

    def outliers(self, seed: int) -> dict[str, float]:
        """OWL's percent of outliers by block."""
        found = measure_blocks(self.bench.model, self._tokens("calibration", seed), outlier_percent)
        return dict(found)

    def alphas(self, name: str) -> dict[str, float]:
        """Mean alpha by block, what the candidate makes of it included."""
        rule, layers = RULES[name], self._analysis(name).layers
        if rule.standardize_by_kind:
            layers = standardized_by_kind(layers)
        return block_alphas(
            rule.change(layers, self.journal.done["outliers | 0"]) if rule.change else layers
        )

    def select(self, method: str, sparsity: float, name: str, eps: float | None) -> float:
        """Perplexity on selection text, pruned at once by the statistics of the dense model."""
        seen = None if method == "magnitude" else self._statistics()
        with self.bench.borrowed():
            self.bench.prune_at_once(self._ratios(name, sparsity, eps, 0), method, seen)
            return self.bench.perplexity(self._tokens("selection", 0))

    def test(self, method: str, sparsity: float, name: str, seed: int) -> dict[str, Any]:
        """Perplexity on test texts with the eps that selection text chose.

        The model is pruned block by block.
        """
        eps = self.chosen(method, sparsity, name)
        with self.bench.borrowed():
            shared = self._ratios(name, sparsity, eps, seed)
            reached = self.bench.prune(shared, method, self._tokens("calibration", seed))
            return self._tests(seed) | {"eps": eps, "sparsity": reached}

    def chosen(self, method: str, sparsity: float, name: str) -> float | None:
        """The eps of least perplexity on selection text; SparseGPT takes Wanda's."""
        method = "wanda" if method == "sparsegpt" else method
        scores = self.journal.done
        tried = self.settings.eps_of(method, name)
        if len(tried) == 1:
            return tried[0]
        return min(
            tried, key=lambda eps: _number(scores[selection_key(method, sparsity, name, eps)])
        )

    def _tests(self, seed: int) -> dict[str, float]:
        return {name: self.bench.perplexity(self._tokens(name, seed)) for name in self.texts.tests}

    def _ratios(
        self, name: str, sparsity: float, eps: float | None, seed: int
    ) -> Mapping[str, float]:
        rule = RULES[name]
        return ratios(
            rule,
            eps,
            sparsity,
            analysis=self._analysis(name) if rule.spec else None,
            even=uniform(self.bench.model, sparsity),
            owl=self.journal.done[f"outliers | {seed}"],
        )

    def _statistics(self) -> Any:
        if 0 not in self._seen:
            self._seen[0] = self.bench.statistics(self._tokens("calibration", 0))
        return self._seen[0]

    def _analysis(self, name: str) -> st.Analysis:
        spec = RULES[name].spec
        if spec is None:
            raise ValueError(f"{name} goes by no alpha")
        return self._measured(name, spec)

    def _measured(self, name: str, spec: st.Spec) -> st.Analysis:
        """Measured once for each spec, kept in the folder of the run."""
        key = " ".join(f"{k}={v}" for k, v in spec.to_dict().items())
        if key not in self._analyses:
            folder = self.work / "analyses" / "".join(c if c.isalnum() else "_" for c in key)
            units = dict.fromkeys(share.unit for share in uniform(self.bench.model, 0.5).shares)
            self._analyses[key] = st.analyze(
                self.bench.model, spec=spec, out=folder, include=[f"{unit}.*" for unit in units]
            )
        return self._analyses[key]

    def _tokens(self, what: str, seed: int) -> Tensor:
        """Token blocks (n, seq_len) of a text, drawn by seed."""
        sizes = {"calibration": self.settings.calibration, "selection": self.settings.selection}
        if (what, seed) not in self._drawn:
            text = {
                "calibration": self.texts.calibration,
                "selection": self.texts.selection,
                **self.texts.tests,
            }[what]
            samples = sizes.get(what, self.settings.tests)
            self._drawn[what, seed] = calibration_tokens(
                self.tokenizer, text, samples=samples, seq_len=self.settings.seq_len, seed=seed
            )
        return self._drawn[what, seed]


def selections(
    done: Mapping[str, Any], settings: Settings
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Selection perplexity by target, allocation and eps.

    Of the allocations for which all are there.
    """
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for method, sparsity in settings.targets:
        for name in RULES if method != "sparsegpt" else ():
            keys = {
                eps: selection_key(method, sparsity, name, eps)
                for eps in settings.eps_of(method, name)
            }
            if all(key in done for key in keys.values()):
                scores = {"" if eps is None else f"{eps:g}": done[key] for eps, key in keys.items()}
                found.setdefault(f"{method} {sparsity:g}", {})[name] = scores
    return found


def over_default(
    selection: Mapping[str, Mapping[str, Mapping[str, float | None]]],
) -> dict[str, dict[str, float]]:
    """Best selection perplexity over that of the default, by target.

    Of what is not in the comparison.
    """
    names = [
        name for name in (*PARTS, *VARIANTS) if all(name in found for found in selection.values())
    ]
    return {
        name: {
            target: best(found[name]) / best(found["FARMS default"])
            for target, found in selection.items()
        }
        for name in names
    }


def finalists(done: Mapping[str, Any], settings: Settings) -> list[str]:
    """The two that are best on selection text.

    In the geometric mean of their ratios over the targets.
    """
    ratios = over_default(selections(done, settings))
    return sorted(ratios, key=lambda name: math.prod(ratios[name].values()))[:FINALISTS]


def best(scores: Mapping[str, float | None]) -> float:
    """The least perplexity; a perplexity beyond all numbers is kept as None."""
    return min(_number(score) for score in scores.values())


def selection_key(method: str, sparsity: float, name: str, eps: float | None) -> str:
    """The step that scores a setting."""
    return f"select | {method} {sparsity:g} | {name} | {'' if eps is None else f'{eps:g}'}"


def test_key(method: str, sparsity: float, name: str, seed: int) -> str:
    """The step that tests the chosen setting."""
    return f"test | {method} {sparsity:g} | {name} | {seed}"


def _number(value: float | None) -> float:
    """The journal keeps infinities as null."""
    return math.inf if value is None else value
