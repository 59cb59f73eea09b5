"""``python -m experiments.pde.controls``: TB_Sigmoid against its controls.

The controls give the same factors to the layers in other ways.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import spectail as st
from experiments.common import ROOT, WORK, Journal
from experiments.control_runs import options_of, run
from experiments.control_study import Candidate, Grid, Study, of_factors, rule_of
from experiments.controls import depth_order
from experiments.pde import __main__ as published
from experiments.pde.__main__ import TUNED, Cell, Experiment, methods, problems_of
from experiments.pde.data import Problem, drawn
from experiments.pde.train import fit, nrmse
from spectail.training.history import Update


@dataclass(frozen=True)
class Case:
    """A cell of ``experiments.pde`` and the rule by alpha that is controlled there."""

    cell: Cell
    rule: str
    grid: Grid

    def __str__(self) -> str:
        return f"{self.cell.network}, {self.cell.task}, {self.cell.n} pairs, {self.rule}"


WHOLE, WINDOWS = "TB_Sigmoid, whole matrices", "TB_Sigmoid, windows"
SPECTRAL = ", spectral too"
CASES = (
    Case(
        Cell(TUNED, 5, "FNO"),
        WHOLE + SPECTRAL,
        Grid((0.00025, 0.0005), ("sigmoid:1",), kinds=True),
    ),
    Case(Cell(TUNED, 5, "U-Net"), WHOLE, Grid((0.005, 0.0125, 0.03), ("sigmoid:0.25",))),
    Case(Cell("Darcy", 10, "FNO"), WINDOWS + SPECTRAL, Grid((0.005, 0.0125), ("sigmoid:0.25",))),
)
"""Where the rule by alpha had the largest lead over Adam at the same base rate, at the numbers of
pairs at which settings were searched, and what it chose there."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of a run; networks, data and training as in ``experiments.pde``."""

    cases: tuple[Case, ...] = CASES
    training: published.Settings = field(default_factory=published.Settings)
    seeds: int = 6


QUICK = Settings(
    cases=(Case(Cell(TUNED, 4, "U-Net"), WHOLE, Grid((0.005,), ("sigmoid:1",))),),
    training=published.QUICK,
    seeds=2,
)


class Training:
    """One run.

    The seed decides the training pairs, the first weights, the order of the pairs and the
    shuffles.
    """

    def __init__(self, problems: Mapping[str, Problem], settings: Settings, device: str) -> None:
        self.cases = {str(case): case for case in settings.cases}
        # The published experiment knows how networks begin; its journal is not used.
        nowhere = Journal(Path("unused"))
        self.experiment = Experiment(problems, settings.training, nowhere, device)

    def __call__(self, case: str, candidate: Candidate, seed: int) -> dict[str, Any]:
        """Train, and return errors in per cent and what the factors were."""
        cell, experiment = self.cases[case].cell, self.experiment
        begin = experiment.pretrained if cell.task == TUNED else experiment.fresh
        network = begin(cell.network, seed).to(experiment.device)
        problem = experiment.problems[cell.task]
        by_alpha = methods(cell.network, experiment.settings)[self.cases[case].rule]
        assert isinstance(by_alpha, st.TBSigmoid)
        by_alpha = replace(by_alpha, map=candidate.map or by_alpha.map)
        example = problem.train[0][:2].to(experiment.device)
        updates: list[Update] = []
        unit = fit(
            network,
            drawn(problem.train, cell.n, seed),
            experiment.recipe(candidate.lr, seed),
            rule_of(candidate, by_alpha, network, example, seed),
            updates.append,
        )
        return {
            "validation": 100 * nrmse(network, problem.validation, unit),
            "test": 100 * nrmse(network, problem.test, unit),
            **of_factors(updates, depth_order(network, example)),
        }


def trainer(options: argparse.Namespace, settings: Settings) -> Training:
    """Load or solve the data; each process that trains does so itself."""
    problems = problems_of(settings.training, options.data)
    return Training(problems, settings, options.device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 0 when all is done, 3 when ``--seconds`` ran out before."""
    parser = argparse.ArgumentParser(prog="python -m experiments.pde.controls")
    parser.add_argument(
        "--data", type=Path, default=WORK, help="folder of neuraloperator 0.3.0's wheel"
    )
    page = ROOT / "docs" / "pde-results.md"
    options = options_of(parser, arguments, Path(__file__).parent, page)
    settings = QUICK if options.quick else Settings()
    grids = {str(case): case.grid for case in settings.cases}
    study = Study(grids, settings.seeds, plain="Adam", best=min)
    return run(study, partial(trainer, options, settings), options, asdict(settings), digits=2)


if __name__ == "__main__":
    sys.exit(main())
