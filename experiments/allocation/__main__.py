"""``python -m experiments.allocation``: whether any rule is better than those that read no weights.

First every rule with every eps on selection text, then the chosen settings on test text.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.allocation import profiles
from experiments.allocation.steps import Experiment, Settings, finalists
from experiments.allocation.subjects import MODELS, SCORED_IN, Subject, open_model
from experiments.allocation.summary import draw, read, results, tables
from experiments.common import (
    ROOT,
    WORK,
    Journal,
    environment,
    fill_page,
    run_steps,
    save_json,
)
from experiments.pruning.texts import Texts, installed
from experiments.pruning.toy import toy

QUICK = Settings(
    eps=(0.2, 0.5), draws=2, seq_len=32, calibration=4, selection=2, tests=2, harder=0.7
)
JOURNALS = ROOT / "experiments" / "allocation" / "journals"
"""Kept in the repository: a run of many hours goes on anywhere."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 0 if all is done, 3 if ``--seconds`` ran out before."""
    options = _options(arguments)
    settings = QUICK if options.quick else Settings(harder=0.7)
    if options.tables:
        publish_all(settings)
        return 0
    torch.manual_seed(0)
    model, tokenizer, texts = _inputs(options)
    sizes = {"calibration": texts.calibration, "selection": texts.selection, **texts.tests}
    kept = settings.to_dict() | {"texts": {name: len(text) for name, text in sizes.items()}}
    scored_in = SCORED_IN.get(options.model, torch.float32)
    if scored_in != torch.float32:
        kept["scored_in"] = str(scored_in)
    folder = WORK / "quick" if options.quick else JOURNALS
    journal = Journal.open(folder / f"{Path(options.model).stem}.jsonl", kept, fresh=options.fresh)
    subject = Subject(model, scored_in)
    experiment = Experiment(subject, tokenizer, texts, settings=settings, journal=journal)
    finished = run_all(experiment, options.seconds)
    if not options.quick:
        publish_all(settings)
    return 0 if finished else 3


def publish_all(settings: Settings) -> None:
    """Write results, tables, picture and page from the journals of all models."""
    journals = {
        name: read(path) for name in MODELS if (path := JOURNALS / f"{name}.jsonl").exists()
    }
    parts = tables(journals, settings) | profiles.main()
    here = JOURNALS.parent
    save_json(here / "results.json", {"environment": environment(), **results(journals, settings)})
    (here / "tables.md").write_text("\n\n".join(parts.values()) + "\n", encoding="utf-8")
    fill_page(ROOT / "docs" / "allocation-results.md", parts)
    draw(journals, settings, ROOT / "docs" / "images" / "allocation.png")


def run_all(experiment: Experiment, seconds: float | None) -> bool:
    """Do the steps in their order; False if the time ran out before the last."""
    until = None if seconds is None else time.monotonic() + seconds

    def run(steps: Any) -> bool:
        left = None if until is None else max(0.0, until - time.monotonic())
        return run_steps(experiment.journal, steps, seconds=left)

    def best(target: tuple[str, float]) -> list[str]:
        return finalists(experiment.journal.done, experiment.settings, target)

    targets, harder = experiment.settings.targets, experiment.settings.harder_targets
    return (
        run(experiment.measuring())
        and all(run(experiment.selecting(target)) for target in targets)
        and all(run(experiment.testing(target, best(target))) for target in targets)
        and all(run(experiment.selecting(target, best(target))) for target in harder)
        and all(run(experiment.testing(target, best(target))) for target in harder)
    )


def _inputs(options: argparse.Namespace) -> tuple[Any, Any, Texts]:
    return toy() if options.quick else (*open_model(options.model), installed())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.allocation", description=__doc__)
    parser.add_argument(
        "--model", default=MODELS[0], help=f"{', '.join(MODELS)}, or what spectail prune opens"
    )
    parser.add_argument("--seconds", type=float, help="stop after so long; run again to go on")
    parser.add_argument("--fresh", action="store_true", help="forget an earlier run")
    parser.add_argument("--tables", action="store_true", help="only write what the journals give")
    parser.add_argument("--quick", action="store_true", help="a toy model, for a minute")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
