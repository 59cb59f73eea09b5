"""``python -m experiments.language``: train a small language model with every method.

Writes a table and a plot.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

import spectail as st
from experiments.common import (
    Journal,
    markdown_table,
    mean_and_spread,
    on_device,
    publish,
    run_options,
    run_steps,
)
from experiments.drawing import COLOURS, panels, save
from experiments.images.train import spread
from experiments.language.data import Corpus, corpus, drawn
from experiments.language.train import Recipe, fit, llama, loss
from experiments.pruning.texts import given, installed
from spectail.training.rules import Rule

SEARCH_SEED = 1000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of a run; the defaults are 5.75 million weights, for a CPU.

    Muon computes in bfloat16, which takes half a minute a step on
    processors that have to emulate it.
    """

    optimizers: tuple[str, ...] = ("AdamW",)
    hidden: int = 256
    layers: int = 7
    length: int = 128
    batch: int = 8
    steps: int = 120
    every: int = 30
    transition: int = 15
    """Steps over which LLR moves to new rates."""
    lrs: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.009)
    seeds: int = 3
    min_eigenvalues: int = 50


FULL = Settings(
    optimizers=("AdamW", "Muon"), layers=12, hidden=320, length=256, batch=64, steps=3000,
    every=100, transition=50,
    lrs=(0.0005, 0.001, 0.002, 0.004, 0.008),
)  # fmt: skip
QUICK = Settings(
    optimizers=("AdamW", "Muon"), hidden=64, layers=2, length=32, batch=8, steps=4,
    every=2, transition=2, lrs=(0.003,),
    seeds=2, min_eigenvalues=0,
)  # fmt: skip
CONTROL = "the layers of LLR, all x 3"
WHOLE, WINDOWS = st.presets.TEMPBALANCE, st.presets.FARMS


def rules(settings: Settings) -> dict[str, Rule | None]:
    """The methods with their published maps, one rate for all, and a control of LLR.

    None stands for one rate and one decay for all. The control gives the layers that LLR scales the
    middle of its factors, whatever their alpha.
    """
    llr = st.LLR(transition=settings.transition, min_eigenvalues=settings.min_eigenvalues)
    found: dict[str, Rule | None] = {"one rate": None, CONTROL: replace(llr, map="linear:3:3")}
    for how, spec in (("whole matrices", WHOLE), ("windows", WINDOWS)):
        found[f"LLR, {how}"] = replace(llr, spec=spec)
        found[f"AlphaDecay, {how}"] = st.AlphaDecay(
            spec=spec, min_eigenvalues=settings.min_eigenvalues
        )
    return found


class Experiment:
    """The steps over all optimizers and methods."""

    def __init__(self, text: Corpus, settings: Settings, journal: Journal, device: str) -> None:
        self.text, self.settings, self.journal, self.device = text, settings, journal, device

    def steps(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Search rates on validation text with a seed of their own, then run every seed."""
        for optimizer in self.settings.optimizers:
            for method in rules(self.settings):
                for lr in self.settings.lrs:
                    yield (
                        search_key(optimizer, method, lr),
                        partial(self.search, optimizer, method, lr),
                    )
            for seed in range(self.settings.seeds):
                for method in rules(self.settings):
                    yield (
                        f"final | {optimizer} | {method} | {seed}",
                        partial(self.final, optimizer, method, seed),
                    )

    def chosen(self, optimizer: str, method: str) -> float:
        """The rate of the least validation loss; a run that diverged counts as none."""
        scores = {
            lr: self.journal.done[search_key(optimizer, method, lr)]["validation"]
            for lr in self.settings.lrs
        }
        return min(scores, key=lambda lr: float("inf") if scores[lr] is None else scores[lr])

    def search(self, optimizer: str, method: str, lr: float) -> dict[str, Any]:
        """One rate, without a look at the test text."""
        return self.train(optimizer, method, lr, SEARCH_SEED)[1]

    def final(self, optimizer: str, method: str, seed: int) -> dict[str, Any]:
        """One seed at the chosen rate."""
        lr = self.chosen(optimizer, method)
        model, found = self.train(optimizer, method, lr, seed)
        return found | {
            "test": loss(model, self.text.test, self._recipe(optimizer, lr, seed)),
            "lr": lr,
        }

    def train(
        self, optimizer: str, method: str, lr: float, seed: int
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Train from scratch; the seed decides the first weights and the pieces of text."""
        torch.manual_seed(seed)
        model = llama(self.settings.hidden, self.settings.layers, self.settings.length)
        return model, fit(
            model,
            self.text,
            self._recipe(optimizer, lr, seed),
            rules(self.settings)[method],
            WINDOWS,
        )

    def _recipe(self, optimizer: str, lr: float, seed: int) -> Recipe:
        sizes = {
            name: getattr(self.settings, name) for name in ("steps", "batch", "length", "every")
        }
        return Recipe(optimizer=optimizer, lr=lr, seed=seed, device=self.device, **sizes)


def search_key(optimizer: str, method: str, lr: float) -> str:
    """The step that scores a rate."""
    return f"search | {optimizer} | {method} | {lr:g}"


def complete_seeds(done: dict[str, Any], settings: Settings) -> int:
    """How many seeds every method was run with."""
    found = [
        sum(f"final | {optimizer} | {method} | {seed}" in done for seed in range(settings.seeds))
        for optimizer in settings.optimizers
        for method in rules(settings)
    ]
    return min(found)


def tables(done: dict[str, Any], settings: Settings) -> dict[str, str]:
    """Losses and the spread of alpha across layers, and differences seed by seed.

    Mean and spread over seeds.
    """
    rows = []
    for optimizer in settings.optimizers:
        base = _finals(done, settings, optimizer, "one rate")
        for method in rules(settings):
            runs = _finals(done, settings, optimizer, method)
            rows.append(
                [
                    f"{optimizer}: {method}",
                    mean_and_spread([run["validation"] for run in runs], 3),
                    mean_and_spread([run["test"] for run in runs], 3),
                    mean_and_spread(
                        [
                            run["test"] - other["test"]
                            for run, other in zip(runs, base, strict=True)
                        ],
                        3,
                    ),
                    mean_and_spread([spread(run["alphas"]) for run in runs], 3),
                    f"{runs[0]['lr']:g}",
                ]
            )
    losses = ["validation loss", "test loss", "test loss less that of one rate, seed by seed"]
    head = ["optimizer: method", *losses, "standard deviation of alpha across layers", "base rate"]
    return {"results": f"Seeds: {settings.seeds}\n\n{markdown_table(head, rows)}"}


def draw(done: dict[str, Any], settings: Settings, path: Path) -> None:
    """Validation loss over steps, less that of one rate: mean of the seeds, and every seed."""
    fig, axes = panels(1, len(settings.optimizers), size=(5.5 * len(settings.optimizers), 3.4))
    for axis, optimizer in zip(axes, settings.optimizers, strict=True):
        base = _finals(done, settings, optimizer, "one rate")
        for i, method in enumerate(rules(settings)):
            runs = _finals(done, settings, optimizer, method)
            steps = list(runs[0]["losses"])
            found = [
                [run["losses"][s] - b["losses"][s] for s in steps]
                for run, b in zip(runs, base, strict=True)
            ]
            for line in found:
                axis.plot([int(s) for s in steps], line, color=COLOURS[i], alpha=0.3, linewidth=0.8)
            mean = [fmean(values) for values in zip(*found, strict=True)]
            axis.plot(
                [int(s) for s in steps], mean, "o-", color=COLOURS[i], markersize=3, label=method
            )
        axis.set_title(optimizer)
        axis.set_xlabel("step")
    axes[0].set_ylabel("validation loss less that of one rate, nats a byte")
    axes[0].legend(fontsize=7)
    save(fig, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and write what is complete.

    0 when all is done, 3 when ``--seconds`` ran out before.
    """
    options = _options(arguments)
    settings = QUICK if options.quick else FULL if options.full else Settings()
    text = drawn() if options.quick else corpus(_texts(options))
    kept = asdict(settings) | {"bytes": {name: len(part) for name, part in vars(text).items()}}
    kept |= on_device(options.device)
    journal = Journal.open(options.work / "language.jsonl", kept, fresh=options.fresh)
    steps = Experiment(text, settings, journal, options.device).steps()
    finished = run_steps(journal, steps, seconds=options.seconds)
    settings = replace(settings, seeds=complete_seeds(journal.done, settings))
    if not settings.seeds:
        return 3
    parts = tables(journal.done, settings)
    publish(options, {"settings": kept, "runs": journal.done}, parts)
    draw(journal.done, settings, options.image)
    return 0 if finished else 3


def _finals(
    done: dict[str, Any], settings: Settings, optimizer: str, method: str
) -> list[dict[str, Any]]:
    return [done[f"final | {optimizer} | {method} | {seed}"] for seed in range(settings.seeds)]


def _texts(options: argparse.Namespace) -> Any:
    own = (options.train, options.validation, options.test)
    if any(own) and not all(own):
        raise SystemExit(
            "give --train, --validation and --test together: no text may serve two ends"
        )
    return (
        given(options.train, options.validation, [f"test={options.test}"])
        if all(own)
        else installed()
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.language", description=__doc__)
    for use in ("train", "validation", "test"):
        parser.add_argument(
            f"--{use}", type=Path, help="a text file, in place of the installed texts"
        )
    parser.add_argument(
        "--full", action="store_true", help="11 million weights, 3000 steps, Muon too: for a GPU"
    )
    return run_options(parser, arguments, "language")


if __name__ == "__main__":
    sys.exit(main())
