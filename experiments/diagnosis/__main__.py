"""``python -m experiments.diagnosis``: train, plant faults, measure.

Then write tables, plot and docs page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from experiments.common import Journal, on_device, publish, run_options, run_steps
from experiments.diagnosis.draw import draw, tables
from experiments.diagnosis.faults import CONTROLS, CUTS, cut, faults, generator_for
from experiments.diagnosis.models import Subject, installed, subject
from experiments.diagnosis.numbers import NUMBERS, OF_WINDOWS, measure_all, measure_windows
from experiments.diagnosis.scores import Measured, score_model, trained_aucs
from experiments.diagnosis.train import Recipe, TextReader, prose, saved, slow_layers, sums
from spectail.basics.files import write_text
from spectail.models.source import Layer

SMALL = "small Llama"
FAULTS = tuple(state.name for state in faults(lambda _: 1.0))
STATES = (*FAULTS, *(state.name for state in CONTROLS), *CUTS)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is run. ``every``: faults in every which block of the models that have many."""

    recipe: Recipe = field(default_factory=Recipe)
    seeds: int = 3
    every: int = 3


FULL = Settings(every=1)
QUICK = Settings(recipe=Recipe(layers=5, steps=2, length=32, batch=2, scored=4), seeds=1, every=5)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 0 when all is done, 3 when ``--seconds`` ran out before."""
    parser = argparse.ArgumentParser(prog="python -m experiments.diagnosis", description=__doc__)
    parser.add_argument("--full", action="store_true", help="faults in all blocks of all models")
    parser.add_argument(
        "--models", type=Path, nargs="*", default=[], help="folders that pip --target filled"
    )
    options = run_options(parser, arguments, "diagnosis")
    settings = QUICK if options.quick else FULL if options.full else Settings()
    found, missing = ([], []) if options.quick else installed(options.models, settings.every)
    for line in missing:
        print(f"not installed, left out: {line}")
    experiment = Experiment(options, settings)
    # The small model has layers to plant faults in only when it is trained.
    for steps in (experiment.steps(found), experiment.training_steps()):
        if not run_steps(experiment.journal, steps, seconds=options.seconds):
            return 3
    subjects = [*found, experiment.small()]
    if not run_steps(experiment.journal, experiment.steps(subjects), seconds=options.seconds):
        return 3
    results: dict[str, Any] = {
        "settings": asdict(settings),
        "left out": missing,
        "faults": FAULTS,
        "models": {one.name: experiment.scored(one) for one in subjects},
        "trained": experiment.trained(),
    }
    draw(results, options.image)
    parts = tables(results)
    kept = {key: compact(model) for key, model in results["models"].items()}
    publish(options, {**results, "states": STATES, "models": kept}, parts)
    write_text(options.out / "tables.md", "\n\n".join(parts.values()) + "\n")
    return 0


class Experiment:
    """The steps of a run, and what follows from them."""

    def __init__(self, options: argparse.Namespace, settings: Settings) -> None:
        self.settings, self.device = settings, options.device
        self.folder = options.work / "diagnosis"
        self.read: TextReader = sums if options.quick else prose
        path = options.work / "diagnosis.jsonl"
        kept = asdict(settings) | on_device(options.device)
        self.journal = Journal.open(path, kept, fresh=options.fresh)
        if options.fresh:
            for kept in self.folder.glob("*.pt"):
                kept.unlink()

    def runs(self) -> Iterator[tuple[str, int, list[str]]]:
        """Training runs: key, seed, slow layers."""
        for seed in range(self.settings.seeds):
            yield f"trained: seed {seed}", seed, []
            yield f"trained: seed {seed}, slow", seed, slow_layers(self.settings.recipe, seed)

    def training_steps(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Train the small model and measure all of its layers."""
        for key, seed, slow in self.runs():
            yield key, partial(self.train, seed, slow)

    def train(self, seed: int, slow: list[str]) -> dict[str, Any]:
        """Train once; validation loss and every layer's numbers."""
        path, loss = saved(self.folder, self.settings.recipe, seed, slow, self.read)
        one = subject(SMALL, path)
        rows = {layer.name: self.measure(layer.read(), layer, one.window) for layer in one.layers}
        return {"loss": loss, "kinds": [layer.kind for layer in one.layers], "layers": rows}

    def small(self) -> Subject:
        """The trained model without slow layers, seed 0, to plant faults in."""
        path, _ = saved(self.folder, self.settings.recipe, 0, [], self.read)
        return subject(SMALL, path, self.settings.every if self.read is sums else 1)

    def steps(self, subjects: Sequence[Subject]) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Measure every layer, and with each fault where faults are planted."""
        for one in subjects:
            windows = one.other_windows(tuple(CUTS.values()))
            for layer in one.layers:
                yield f"{one.name}: {layer.name}", partial(self.look, one, layer, windows)

    def look(self, one: Subject, layer: Layer, windows: Sequence[int]) -> dict[str, Any]:
        """A layer's numbers as it is, in other windows, and in every changed state."""
        matrices = layer.read()
        found = {"healthy": self.measure(matrices, layer, one.window)}
        for window in windows:
            found[f"window {window}"] = measure_windows(matrices.to(self.device), window)
        if layer not in one.planted:
            return found
        found[CONTROLS[0].name] = found["healthy"]
        for state in (*faults(one.initial), *CONTROLS[1:]):
            changed = state.change(matrices, generator_for(one.name, layer.name, state.name))
            found[state.name] = self.measure(changed, layer, one.window)
        for name, part in CUTS.items():
            if imposed := one.cut_window(layer, part):
                changed = cut(matrices, generator_for(one.name, layer.name, name), part)
                found[name] = self.measure(changed, layer, imposed)
        return found

    def measure(self, matrices: Tensor, layer: Layer, window: int) -> dict[str, float]:
        """All numbers of a layer with these matrices."""
        on_device = matrices.to(self.device)
        return measure_all(on_device, window, convolution=layer.kind == "conv")

    def scored(self, one: Subject) -> dict[str, Any]:
        """The scores of a model, with its healthy layers."""
        rows = [self.journal.done[f"{one.name}: {layer.name}"] for layer in one.layers]
        model = measured(one, rows)
        return {
            "window": one.window,
            "layers": list(model.names),
            "kinds by layer": list(model.kinds),
            "shapes": [f"{rows}x{cols}" for rows, cols in model.shapes],
            "planted": sum(layer in one.planted for layer in one.layers),
            "healthy": {name: values.tolist() for name, values in model.healthy.items()},
            "unmeasured": unmeasured(model),
            **score_model(model, FAULTS),
        }

    def trained(self) -> dict[str, Any]:
        """Losses, and AUCs of slow layers, by seed.

        The same layers trained at the full rate have AUCs beside them.
        """
        found: dict[str, Any] = {}
        for key, seed, slow in self.runs():
            run = self.journal.done[key]
            chosen = slow_layers(self.settings.recipe, seed)
            aucs = trained_aucs(run["layers"], run["kinds"], chosen)
            what = "slow" if slow else "full rate"
            found.setdefault(f"seed {seed}", {"slow layers": chosen})[what] = {
                "loss": run["loss"],
                "aucs": aucs,
            }
        return found


def compact(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's results with lists in place of dicts of areas.

    The lists are in the order of ``states`` and of the model's kinds.
    """
    kinds = list(dict.fromkeys(model["kinds by layer"]))

    def listed(areas: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
        return {
            view: {
                side: {name: [row.get(key) for key in keys] for name, row in numbers.items()}
                for side, numbers in sides.items()
            }
            for view, sides in areas.items()
        }

    return {
        **model,
        "kinds": kinds,
        "aucs": listed(model["aucs"], STATES),
        "aucs by kind of layer": listed(model["kinds"], kinds),
    }


def measured(one: Subject, rows: Sequence[Mapping[str, Mapping[str, float | None]]]) -> Measured:
    """Arrays from the journal's rows, one row per layer."""
    windows = one.other_windows(tuple(CUTS.values()))
    return Measured(
        names=tuple(layer.name for layer in one.layers),
        kinds=tuple(layer.kind for layer in one.layers),
        shapes=tuple((layer.rows, layer.cols) for layer in one.layers),
        healthy={name: _column(rows, "healthy", name) for name in NUMBERS},
        at_window={
            window: {name: _column(rows, f"window {window}", name) for name in OF_WINDOWS}
            for window in windows
        },
        states={
            state: {
                i: {name: _value(row[state][name]) for name in NUMBERS}
                for i, row in enumerate(rows)
                if state in row
            }
            for state in STATES
        },
        cut_windows={
            name: {
                i: window
                for i, layer in enumerate(one.layers)
                if (window := one.cut_window(layer, part))
            }
            for name, part in CUTS.items()
        },
    )


def unmeasured(model: Measured) -> dict[str, int]:
    """How many changed layers a number could not be measured on, where there are any."""
    counts = {
        name: sum(
            not np.isfinite(values[name])
            for rows in model.states.values()
            for values in rows.values()
        )
        for name in NUMBERS
    }
    return {name: count for name, count in counts.items() if count}


def _column(
    rows: Sequence[Mapping[str, Mapping[str, float | None]]], state: str, name: str
) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([_value(row[state][name]) for row in rows])


def _value(value: float | None) -> float:
    """JSON has no NaN: it comes back as None."""
    return float("nan") if value is None else value


if __name__ == "__main__":
    sys.exit(main())
