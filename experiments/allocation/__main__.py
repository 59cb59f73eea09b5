"""``python -m experiments.allocation``: whether any rule is better than those that read no weights.

First every rule with every eps on selection text, then the chosen settings on test text.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from experiments.allocation import profiles
from experiments.allocation.opening import JOURNALS, open_experiment
from experiments.allocation.steps import Experiment, Settings, Step, finalists
from experiments.allocation.subjects import MODELS
from experiments.allocation.summary import draw, results, tables
from experiments.common import (
    ROOT,
    Workers,
    environment,
    fill_page,
    run_steps,
    save_json,
    steps_in,
)

FULL = Settings(harder=0.7)
QUICK = Settings(
    eps=(0.2, 0.5), draws=2, seq_len=32, calibration=4, selection=2, tests=2, harder=0.7
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 0 if all is done, 3 if ``--seconds`` ran out before."""
    options = _options(arguments)
    settings = QUICK if options.quick else FULL
    if options.tables:
        publish_all(settings)
        return 0
    begin = partial(open_experiment, options.model, settings, options.device, quick=options.quick)
    experiment = begin(fresh=options.fresh)
    another = partial(begin, journal=experiment.journal)
    with Workers(options.workers, another) as workers:
        finished = run_all(experiment, options.seconds, workers)
    if options.model not in MODELS:
        # The page compares two models; the tables of any other one are printed.
        name = Path(options.model).stem
        print("\n\n".join(tables({name: experiment.journal.done}, settings).values()))
    elif not options.quick:
        publish_all(settings)
    return 0 if finished else 3


def publish_all(settings: Settings) -> None:
    """Write results, tables, picture and page from the journals of all models."""
    journals = {
        name: steps_in(path) for name in MODELS if (path := JOURNALS / f"{name}.jsonl").exists()
    }
    parts = tables(journals, settings) | profiles.main()
    here = JOURNALS.parent
    save_json(here / "results.json", {"environment": environment(), **results(journals, settings)})
    (here / "tables.md").write_text("\n\n".join(parts.values()) + "\n", encoding="utf-8")
    fill_page(ROOT / "docs" / "allocation-results.md", parts)
    draw(journals, settings, ROOT / "docs" / "images" / "allocation.png")


def run_all(experiment: Experiment, seconds: float | None, workers: Workers | None = None) -> bool:
    """Do the steps in their order; False if the time ran out before the last."""
    until = None if seconds is None else time.monotonic() + seconds

    def run(steps: Iterable[Step], workers: Workers | None = workers) -> bool:
        left = None if until is None else max(0.0, until - time.monotonic())
        return run_steps(experiment.journal, steps, seconds=left, workers=workers)

    def best(target: tuple[str, float]) -> list[str]:
        return finalists(experiment.journal.done, experiment.settings, target)

    targets, harder = experiment.settings.targets, experiment.settings.harder_targets
    return (
        run(experiment.measuring(), None)
        and run(step for target in targets for step in experiment.selecting(target))
        and run(step for target in targets for step in experiment.testing(target, best(target)))
        and run(step for target in harder for step in experiment.selecting(target, best(target)))
        and run(step for target in harder for step in experiment.testing(target, best(target)))
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.allocation", description=__doc__)
    parser.add_argument(
        "--model", default=MODELS[0], help=f"{', '.join(MODELS)}, or what spectail prune opens"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the steps")
    parser.add_argument("--seconds", type=float, help="stop after so long; run again to go on")
    parser.add_argument("--fresh", action="store_true", help="forget an earlier run")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--tables", action="store_true", help="only write what the journals give")
    either.add_argument("--quick", action="store_true", help="a toy model, for a minute")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
