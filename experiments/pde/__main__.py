"""``python -m experiments.pde``: train with every method at its best setting.

Every method has several seeds; a table and a plot are written.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

import spectail as st
from experiments.common import (
    WORK,
    Journal,
    markdown_table,
    mean_and_spread,
    on_device,
    publish,
    run_options,
    run_steps,
)
from experiments.drawing import COLOURS, MARKERS, panels, save
from experiments.pde.data import Problem, Scale, darcy, drawn, reaction
from experiments.pde.networks import NETWORKS, SPECTRAL
from experiments.pde.solver import Equation
from experiments.pde.train import Recipe, alphas, error_of_mean, fit, nrmse

SEARCH_SEED = 1000
ADAM = "Adam"
WINDOWS = "TB_Sigmoid, windows"
TUNED = "reaction, fine-tuned"
"""The task that starts from a network of the source equation; the others start from scratch."""
SOURCE = "source"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of a run; the defaults are small networks and few steps for a CPU."""

    networks: tuple[str, ...] = ("FNO", "U-Net")
    widths: tuple[int, ...] = (20, 16)
    """Of the networks, in their order."""
    amounts: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("Darcy", (10, 50, 400)), ("reaction", (5, 20, 100)), (TUNED, (5,)),
    )  # fmt: skip
    """Numbers of training pairs by task."""
    search_all: bool = False
    """Whether settings are searched for every amount, not for the smallest alone."""
    sizes: tuple[int, int, int] = (400, 200, 200)
    """Training, validation and test pairs of the reaction."""
    side: int = 16
    rate: float = 2.0
    diffusivity: float = 0.001
    source: float = 0.004
    """Diffusivity of the equation that networks are trained on before fine-tuning."""
    steps: int = 200
    batch: int = 8
    every: int = 20
    """Steps between two measurements."""
    lrs: tuple[float, ...] = (0.002, 0.005, 0.0125)
    tuning_lrs: tuple[float, ...] = (0.00025, 0.0005)
    """More base rates for fine-tuning, which asks for lower ones."""
    scales: tuple[float, ...] = (0.25, 1.0)
    """Of the sigmoid: factors from 10^(-scale / 2) to 10^(scale / 2)."""
    seeds: int = 3
    window: int = 16
    """Of the method and of the alphas that are reported; no larger than the
    narrowest layer that is measured."""


FULL = Settings(
    widths=(64, 32), search_all=True, sizes=(1000, 200, 200), side=32, steps=10_000, batch=16,
    every=100, seeds=5,
    amounts=(("Darcy", (10, 25, 50, 100, 200, 400, 800)),
             ("reaction", (10, 25, 50, 100, 200, 400, 1000)),
             (TUNED, (5, 10, 25, 100))),
    lrs=(0.0005, 0.001, 0.002, 0.005, 0.0125), tuning_lrs=(0.0001, 0.00025),
    scales=(0.125, 0.25, 0.5, 1.0, 2.0),
)  # fmt: skip
QUICK = Settings(
    networks=("U-Net",), widths=(16,), amounts=(("reaction", (4, 8)), (TUNED, (4,))),
    sizes=(8, 4, 4), side=8, steps=3,
    batch=4, every=2, lrs=(0.005,), tuning_lrs=(), scales=(0.5,), seeds=2,
)  # fmt: skip


def methods(network: str, settings: Settings) -> dict[str, st.TBSigmoid | None]:
    """The methods: which layers each balances and how it measures alpha; None for one rate for all.

    Layers from 12 eigenvalues take part, as published for PDEs. The layers where fields enter
    and leave have a side below 16, which no method measures.
    """
    found: dict[str, st.TBSigmoid | None] = {ADAM: None}
    for where, globs in (("", SPECTRAL.get(network, ())), (", spectral too", ())):
        if where and network not in SPECTRAL:
            continue
        for name, spec in (
            ("whole matrices", st.presets.FULL),
            ("windows", st.Spec(window=settings.window)),
        ):
            found[f"TB_Sigmoid, {name}{where}"] = st.TBSigmoid(
                spec=spec, exclude=globs, include_first_last=True, min_eigenvalues=12
            )
    return found


@dataclass(frozen=True)
class Cell:
    """A task, a number of training pairs and a network: where methods are compared."""

    task: str
    n: int
    network: str

    def __str__(self) -> str:
        return f"{self.task} | {self.n} | {self.network}"


def cells(settings: Settings) -> list[Cell]:
    """In the order of the run: all amounts of a task and network together."""
    return [
        Cell(task, n, net)
        for task, amounts in settings.amounts
        for net in settings.networks
        for n in amounts
    ]


def searched(cell: Cell, settings: Settings) -> Cell:
    """Where the settings of a cell are searched.

    At its smallest number of pairs, unless all are searched.
    """
    return cell if settings.search_all else replace(cell, n=dict(settings.amounts)[cell.task][0])


class Experiment:
    """The steps over all cells and methods."""

    def __init__(
        self, problems: Mapping[str, Problem], settings: Settings, journal: Journal, device: str
    ) -> None:
        self.problems, self.settings, self.journal, self.device = (
            problems,
            settings,
            journal,
            device,
        )
        self.trained: dict[tuple[str, int], nn.Module] = {}

    def steps(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        """Search settings on validation pairs with a seed of their own, then run every seed."""
        for cell in cells(self.settings):
            rules = methods(cell.network, self.settings)
            if searched(cell, self.settings) == cell:
                for method, rule in rules.items():
                    for lr, scale in self.tried(cell, method):
                        yield (
                            search_key(cell, method, lr, scale),
                            partial(self.search, cell, lr, scaled(rule, scale)),
                        )
            for seed in range(self.settings.seeds):
                yield f"mean | {cell} | {seed}", partial(self.mean, cell, seed)
                for method, rule in rules.items():
                    yield (
                        f"final | {cell} | {method} | {seed}",
                        partial(self.final, cell, method, rule, seed),
                    )
                for method in self.balanced(cell):
                    yield (
                        f"same rate | {cell} | {method} | {seed}",
                        partial(self.same_rate, cell, method, seed),
                    )

    def balanced(self, cell: Cell) -> list[str]:
        """All methods but Adam."""
        return [method for method in methods(cell.network, self.settings) if method != ADAM]

    def tried(self, cell: Cell, method: str) -> list[tuple[float, float | None]]:
        """The same base rates for all, and the same scales for all that have one."""
        lrs = (
            (*self.settings.tuning_lrs, *self.settings.lrs)
            if cell.task == TUNED
            else self.settings.lrs
        )
        scales = (None,) if method == ADAM else self.settings.scales
        return [(lr, scale) for lr in lrs for scale in scales]

    def chosen(self, cell: Cell, method: str) -> tuple[float, float | None]:
        """The setting of the least validation error."""
        where = searched(cell, self.settings)
        return min(
            self.tried(where, method),
            key=lambda tried: self.journal.done[search_key(where, method, *tried)]["validation"],
        )

    def mean(self, cell: Cell, seed: int) -> float:
        """Test error of the mean of a seed's training solutions."""
        problem = self.problems[cell.task]
        return error_of_mean(drawn(problem.train, cell.n, seed), problem.test)

    def search(self, cell: Cell, lr: float, rule: st.TBSigmoid | None) -> dict[str, Any]:
        """One setting, without a look at the test pairs."""
        return self.train(cell, lr, rule, SEARCH_SEED)[1]

    def final(
        self, cell: Cell, method: str, rule: st.TBSigmoid | None, seed: int
    ) -> dict[str, Any]:
        """One seed at the chosen setting.

        Its alphas are measured in windows, whatever the method.
        """
        lr, scale = self.chosen(cell, method)
        (network, unit), found = self.train(cell, lr, scaled(rule, scale), seed)
        test = nrmse(network, self.problems[cell.task].test, unit)
        after = alphas(network, st.Spec(window=self.settings.window))
        return found | {"test": test, "lr": lr, "scale": scale, "alphas": after}

    def same_rate(self, cell: Cell, method: str, seed: int) -> dict[str, Any]:
        """Adam at the base rate that a method has chosen, taken over where that was run already."""
        lr = self.chosen(cell, method)[0]
        known = [("final", ADAM), *(("same rate", other) for other in self.balanced(cell))]
        runs = (self.journal.done.get(f"{kind} | {cell} | {name} | {seed}") for kind, name in known)
        if found := next((run for run in runs if run and run["lr"] == lr), None):
            return {"lr": lr, "test": found["test"]}
        (network, unit), errors = self.train(cell, lr, None, seed)
        return errors | {"lr": lr, "test": nrmse(network, self.problems[cell.task].test, unit)}

    def train(
        self, cell: Cell, lr: float, rule: st.TBSigmoid | None, seed: int
    ) -> tuple[tuple[nn.Module, Scale], dict[str, float]]:
        """Train.

        The seed decides the training pairs, the first weights and the order of the pairs.
        """
        problem = self.problems[cell.task]
        network = (
            self.pretrained(cell.network, seed)
            if cell.task == TUNED
            else self.fresh(cell.network, seed)
        )
        pairs = drawn(problem.train, cell.n, seed)
        unit = fit(network, pairs, self.recipe(lr, seed), rule)
        errors = {
            "training": nrmse(network, pairs, unit),
            "validation": nrmse(network, problem.validation, unit),
        }
        return (network, unit), errors

    def recipe(self, lr: float, seed: int) -> Recipe:
        """Of all runs, before fine-tuning too."""
        s = self.settings
        return Recipe(
            steps=s.steps, batch=s.batch, lr=lr, seed=seed, every=s.every, device=self.device
        )

    def fresh(self, network: str, seed: int) -> nn.Module:
        """A network with first weights by the seed."""
        torch.manual_seed(seed)
        return NETWORKS[network](self.settings.widths[self.settings.networks.index(network)])

    def pretrained(self, network: str, seed: int) -> nn.Module:
        """A copy of the network that Adam trained on the source equation.

        It was trained on all pairs at the middle rate.
        """
        if (network, seed) not in self.trained:
            self.trained[network, seed] = model = self.fresh(network, seed)
            lr = sorted(self.settings.lrs)[len(self.settings.lrs) // 2]
            fit(model, self.problems[SOURCE].train, self.recipe(lr, seed), None)
        return copy.deepcopy(self.trained[network, seed])


def scaled(rule: st.TBSigmoid | None, scale: float | None) -> st.TBSigmoid | None:
    """The rule with this scale of its sigmoid."""
    return rule and replace(rule, map=f"sigmoid:{scale:g}")


def search_key(cell: Cell, method: str, lr: float, scale: float | None) -> str:
    """The step that scores a setting."""
    return f"search | {cell} | {method} | {lr:g} | {'' if scale is None else f'{scale:g}'}"


def tables(done: dict[str, Any], settings: Settings) -> dict[str, str]:
    """By method and cell: test errors; less Adam's, as chosen and at the same base rate.

    Spread of alpha; settings.
    """
    columns = [(task, n) for task, amounts in settings.amounts for n in amounts]
    rows: dict[str, list[list[str]]] = {
        name: [] for name in ("results", "differences", "same rate", "spread", "settings")
    }
    for network in settings.networks:
        row = [Cell(task, n, network) for task, n in columns]
        adam = [_tests(done, cell, ADAM, settings) for cell in row]
        for method in methods(network, settings):
            name, found = (
                f"{network}: {method}",
                [_tests(done, cell, method, settings) for cell in row],
            )
            finals = [_finals(done, cell, method, settings) for cell in row]
            rows["results"].append([name, *map(_mean, found)])
            rows["spread"].append(
                [name, *(_mean([stdev(run["alphas"].values()) for run in runs]) for runs in finals)]
            )
            rows["settings"].append([name, *(_setting(runs[0]) for runs in finals)])
            if method != ADAM:
                same = [_tests(done, cell, method, settings, "same rate") for cell in row]
                for part, base in (("differences", adam), ("same rate", same)):
                    rows[part].append(
                        [
                            name,
                            *(_mean(_minus(a, b), "+") for a, b in zip(found, base, strict=True)),
                        ]
                    )
    means = [
        [100 * done[f"mean | {cell} | {seed}"] for seed in range(settings.seeds)] for cell in row
    ]
    rows["results"].append(["the mean training solution", *map(_mean, means)])
    head = ["network: method", *(f"{task}: {n}" for task, n in columns)]
    return {name: markdown_table(head, part) for name, part in rows.items()}


def draw(done: dict[str, Any], settings: Settings, path: Path) -> None:
    """Test error over the number of training pairs: a row of panels for each network."""
    tasks, rows = len(settings.amounts), len(settings.networks)
    fig, axes = panels(rows, tasks, size=(3.0 * tasks + 2.6, 2.8 * rows + 0.5))
    for i, axis in enumerate(axes):
        network, (task, amounts) = settings.networks[i // tasks], settings.amounts[i % tasks]
        series = [(name, "final", name) for name in methods(network, settings)]
        series.append((WINDOWS, "same rate", f"Adam, base rate of\n{WINDOWS}"))
        for j, (method, kind, label) in enumerate(series):
            found = [_tests(done, Cell(task, n, network), method, settings, kind) for n in amounts]
            at = [k + 0.09 * (j - (len(series) - 1) / 2) for k in range(len(amounts))]
            means, bars = [fmean(errors) for errors in found], [stdev(errors) for errors in found]
            look: dict[str, Any] = {
                "markersize": 4,
                "capsize": 2,
                "linewidth": 1,
                "color": COLOURS[j if kind == "final" else -1],
            }
            axis.errorbar(
                at,
                means,
                bars,
                fmt=f"{MARKERS[j]}{'-' if kind == 'final' else ':'}",
                label=label,
                **look,
            )
        axis.set_xticks(range(len(amounts)), [str(n) for n in amounts])
        axis.set_xlim(-0.5, len(amounts) - 0.5)
        axis.set_title(f"{network}, {task}")
        axis.set_xlabel("training pairs")
        if i % tasks == 0:
            axis.set_ylabel("test nRMSE, %")
        if (i + 1) % tasks == 0:
            axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    save(fig, path)


def problems_of(settings: Settings, folder: Path) -> dict[str, Problem]:
    """The data of all tasks, and of the equation before fine-tuning."""

    def here(diffusivity: float, seed: int) -> Problem:
        equation = Equation(diffusivity=diffusivity, rate=settings.rate)
        return reaction(equation, settings.sizes, side=settings.side, seed=seed)

    tasks = dict(settings.amounts)
    found = {"Darcy": darcy(folder)} if "Darcy" in tasks else {}
    found |= dict.fromkeys(
        (task for task in tasks if task != "Darcy"), here(settings.diffusivity, 0)
    )
    return found | {SOURCE: here(settings.source, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 0 when all is done, 3 when ``--seconds`` ran out before."""
    options = _options(arguments)
    settings = QUICK if options.quick else FULL if options.full else Settings()
    problems = problems_of(settings, options.data)
    kept = asdict(settings) | on_device(options.device)
    journal = Journal.open(options.work / "pde.jsonl", kept, fresh=options.fresh)
    experiment = Experiment(problems, settings, journal, options.device)
    for network in settings.networks:
        experiment.fresh(network, 0)  # what is not installed is missed at once
    if not run_steps(journal, experiment.steps(), seconds=options.seconds):
        return 3
    parts = tables(journal.done, settings)
    publish(options, {"settings": kept, "runs": journal.done}, parts)
    draw(journal.done, settings, options.image)
    return 0


def _finals(
    done: dict[str, Any], cell: Cell, method: str, settings: Settings, kind: str = "final"
) -> list[dict[str, Any]]:
    """Runs at the chosen setting, by seed."""
    return [done[f"{kind} | {cell} | {method} | {seed}"] for seed in range(settings.seeds)]


def _tests(
    done: dict[str, Any], cell: Cell, method: str, settings: Settings, kind: str = "final"
) -> list[float]:
    """Test errors by seed, per cent."""
    return [100 * run["test"] for run in _finals(done, cell, method, settings, kind)]


def _minus(found: list[float], base: list[float]) -> list[float]:
    return [a - b for a, b in zip(found, base, strict=True)]


def _setting(run: dict[str, Any]) -> str:
    return f"{run['lr']:g}" + ("" if run["scale"] is None else f", {run['scale']:g}")


def _mean(values: list[float], sign: str = "") -> str:
    return mean_and_spread(values, 2, sign)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.pde", description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=WORK,
        help="folder of neuraloperator 0.3.0's wheel or Darcy files",
    )
    parser.add_argument(
        "--full", action="store_true", help="larger networks, 10,000 steps, all amounts: for a GPU"
    )
    return run_options(parser, arguments, "pde")


if __name__ == "__main__":
    sys.exit(main())
