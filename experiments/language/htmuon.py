"""``python -m experiments.language.htmuon``: test whether Muon suppresses heavy tails.

Trains a small Llama with AdamW, Muon and HTMuon at every base rate and with every seed, and
compares the alphas of the matrices inside blocks seed by seed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean, stdev
from typing import Any

import torch
from scipy import stats
from torch import nn

import spectail as st
from experiments.common import (
    Journal,
    environment,
    fill_page,
    markdown_table,
    on_device,
    run_options,
    run_steps,
)
from experiments.language.data import Corpus, corpus, drawn
from experiments.language.train import Recipe, fit, llama
from experiments.pruning.texts import installed

OPTIMIZERS = ("AdamW", "Muon", "exact Muon", "HTMuon")
"""Muon is torch's, which leaves small singular values small; exact Muon sets all to one."""
PAIRS = (
    ("Muon", "AdamW"),
    ("HTMuon", "AdamW"),
    ("HTMuon", "Muon"),
    ("HTMuon", "exact Muon"),
)
CUTOFFS = {"median": st.presets.FARMS, "top 10 %": st.presets.FARMS_TAIL}
DIGITS = {"validation": 3, "median": 3, "top 10 %": 2}
"""What is compared, with the digits that are shown."""
HEADS = ("validation loss", "alpha, median cutoff", "alpha, top 10 %")
CHOSEN = "each its best"
KINDS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of a run; the defaults are 0.5 million weights, for a CPU."""

    hidden: int = 128
    layers: int = 2
    length: int = 64
    batch: int = 8
    steps: int = 120
    lrs: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    seeds: int = 3


FULL = Settings(
    hidden=320, layers=12, length=256, batch=64, steps=3000,
    lrs=(0.0005, 0.001, 0.002, 0.004, 0.008), seeds=5,
)  # fmt: skip
QUICK = Settings(hidden=64, layers=1, length=16, batch=2, steps=2, lrs=(0.003,), seeds=2)


@dataclass(frozen=True)
class Training:
    """Runs from scratch; the seed decides the first weights and the pieces of text."""

    text: Corpus
    settings: Settings
    device: str

    def steps(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """All runs, seed by seed: a run that is stopped has the same seeds for everything."""
        yield "environment", environment
        for seed in range(self.settings.seeds):
            for lr in self.settings.lrs:
                for optimizer in OPTIMIZERS:
                    yield key(optimizer, lr, seed), partial(self.train, optimizer, lr, seed)

    def train(self, optimizer: str, lr: float, seed: int) -> dict[str, Any]:
        """Train once and measure the matrices inside blocks with both cutoffs."""
        sizes = {name: getattr(self.settings, name) for name in ("steps", "batch", "length")}
        recipe = Recipe(
            optimizer=optimizer, lr=lr, seed=seed, device=self.device,
            every=max(1, self.settings.steps // 4), **sizes,
        )  # fmt: skip
        torch.manual_seed(seed)
        model = llama(self.settings.hidden, self.settings.layers, self.settings.length)
        found = fit(model, self.text, recipe, None, None)
        kept = {name: found[name] for name in ("validation", "losses")}
        return kept | {name: inside(model, spec) for name, spec in CUTOFFS.items()}


def inside(model: nn.Module, spec: st.Spec) -> dict[str, dict[str, float]]:
    """Alpha, its standard error and the null of every matrix inside a block, by name."""
    table = st.analyze(model, spec=spec).table
    found = table[(table["status"] == "ok") & table["comparable"] & table["block"].notna()]
    columns = ["alpha", "alpha_se", "alpha_null"]
    rows = zip(found["name"], found[columns].round(4).to_numpy().tolist(), strict=True)
    return {name: dict(zip(columns, values, strict=True)) for name, values in rows}


def key(optimizer: str, lr: float, seed: int) -> str:
    """The step of one run."""
    return f"{optimizer} | {lr:g} | {seed}"


@dataclass(frozen=True)
class Results:
    """The finished runs of a journal, of the seeds that every optimizer and rate has."""

    done: Mapping[str, Any]
    settings: Settings

    @property
    def seeds(self) -> int:
        """How many seeds are complete."""
        missing = (
            seed
            for seed in range(self.settings.seeds)
            if not all(
                key(o, lr, seed) in self.done for o in OPTIMIZERS for lr in self.settings.lrs
            )
        )
        return next(missing, self.settings.seeds)

    def values(self, optimizer: str, lr: float, what: str, kind: str = "") -> list[float]:
        """The loss, or the mean alpha of the matrices (of a kind), of each seed.

        NaN for a run that diverged.
        """
        runs = [self.done[key(optimizer, lr, seed)] for seed in range(self.seeds)]
        if any(run["validation"] is None for run in runs):
            return [math.nan] * len(runs)
        if what == "validation":
            return [run[what] for run in runs]
        return [mean_of(run[what], "alpha", kind) for run in runs]

    def best(self, optimizer: str) -> float:
        """The rate of the least mean validation loss, among rates at which no seed diverged."""
        scores = {lr: fmean(self.values(optimizer, lr, "validation")) for lr in self.settings.lrs}
        return min(scores, key=lambda lr: math.inf if math.isnan(scores[lr]) else scores[lr])

    def null(self, what: str) -> float:
        """The mean alpha that random matrices of these shapes have."""
        first = (key(o, lr, 0) for o in OPTIMIZERS for lr in self.settings.lrs)
        return next(mean_of(self.done[k][what], "alpha_null") for k in first if self.done[k][what])


def mean_of(layers: Mapping[str, Mapping[str, float]], column: str, kind: str = "") -> float:
    """The mean of a column over matrices, or over those of a kind (how their names end)."""
    return fmean(layer[column] for name, layer in layers.items() if name.endswith(kind))


def with_error(values: Sequence[float], digits: int, *, difference: bool = False) -> str:
    """Mean and standard error over seeds.

    A difference is bold where the 95 % interval of Student's t excludes 0.
    """
    mean = fmean(values)
    if math.isnan(mean):
        return "diverged"
    text = f"{mean:{'+' if difference else ''}.{digits}f}"
    if len(values) < 2:
        return text
    error = stdev(values) / math.sqrt(len(values))
    text = f"{text} ± {error:.{digits}f}"
    clear = abs(mean) > stats.t.ppf(0.975, len(values) - 1) * error
    return f"**{text}**" if difference and clear else text


def tables(results: Results) -> dict[str, str]:
    """Losses and alphas of every optimizer and rate, and the differences seed by seed."""
    settings = results.settings
    every = len(OPTIMIZERS) * len(settings.lrs) * settings.seeds
    runs = sum(" | " in step for step in results.done)
    state = f"{runs} of {every} runs are done"
    if runs < every:
        state += "; the same command goes on"
    if not results.seeds:
        return {"htmuon": f"{state}. No seed is complete yet."}
    note = f"{state}; complete seeds: {results.seeds}. Mean ± standard error over seeds."
    levels = markdown_table(("optimizer, base rate", *HEADS), _levels(results))
    gaps = markdown_table(("difference", "base rate", *HEADS), _differences(results))
    kinds = markdown_table(("at the best rate", *OPTIMIZERS), _kinds(results))
    return {"htmuon": "\n\n".join((note, levels, gaps, kinds))}


def _levels(results: Results) -> Iterator[list[str]]:
    """One row per optimizer and rate, the best rate in bold, and one of random matrices."""
    for optimizer in OPTIMIZERS:
        for lr in results.settings.lrs:
            label = f"{optimizer}, {lr:g}"
            cells = [with_error(results.values(optimizer, lr, w), DIGITS[w]) for w in DIGITS]
            yield [f"**{label}**" if lr == results.best(optimizer) else label, *cells]
    yield ["random matrices", "", *(f"{results.null(w):.{DIGITS[w]}f}" for w in CUTOFFS)]


def _differences(results: Results) -> Iterator[list[str]]:
    """One row per pair of optimizers and rate."""
    for one, other in PAIRS:
        same = [(f"{lr:g}", lr, lr) for lr in results.settings.lrs]
        for label, a, b in [(CHOSEN, results.best(one), results.best(other)), *same]:
            cells = []
            for what, digits in DIGITS.items():
                pairs = zip(
                    results.values(one, a, what), results.values(other, b, what), strict=True
                )
                cells.append(with_error([x - y for x, y in pairs], digits, difference=True))
            yield [f"{one} less {other}", label, *cells]


def _kinds(results: Results) -> Iterator[list[str]]:
    """One row per cutoff and kind of matrix."""
    for what in CUTOFFS:
        for kind in KINDS:
            cells = (results.values(o, results.best(o), what, f"{kind}_proj") for o in OPTIMIZERS)
            yield [f"{kind}, {what}", *(with_error(found, DIGITS[what]) for found in cells)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and write what is complete.

    0 when all is done, 3 when ``--seconds`` ran out before.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments.language.htmuon")
    parser.add_argument("--full", action="store_true", help="11 million weights, for a GPU")
    options = run_options(parser, arguments, "language")
    settings = QUICK if options.quick else FULL if options.full else Settings()
    text = drawn() if options.quick else corpus(installed())
    kept = asdict(settings) | {"bytes": {name: len(part) for name, part in vars(text).items()}}
    kept |= on_device(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    journal = Journal.open(options.out / "htmuon.jsonl", kept, fresh=options.fresh)
    steps = Training(text, settings, options.device).steps()
    finished = run_steps(journal, steps, seconds=options.seconds)
    parts = tables(Results(journal.done, settings))
    if options.page:
        fill_page(options.page, parts)
    print("\n\n".join(parts.values()))
    return 0 if finished else 3


if __name__ == "__main__":
    sys.exit(main())
