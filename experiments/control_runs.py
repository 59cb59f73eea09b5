"""Runs of training with controls: options, processes, the journal and the page.

``experiments.control_study`` says what is run and how results compare.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from experiments.common import Journal, Workers, environment, fill_page, on_device, run_steps
from experiments.control_study import Study, Train, key, tables


def run(
    study: Study,
    trainer: Callable[[], Train],
    options: argparse.Namespace,
    settings: Mapping[str, Any],
    digits: int,
) -> int:
    """Run what the journal lacks, fill the page and print the tables.

    ``trainer`` loads the data; it is called in every process that trains. 0 when all is done,
    else 3.
    """
    kept = {**settings, **on_device(options.device)}
    journal = Journal.open(options.journal, kept, fresh=options.fresh)
    finished = train_missing(study, journal, trainer, options)
    parts = tables(journal.done, study, digits)
    if options.page:
        fill_page(options.page, {f"{name}{options.part}": text for name, text in parts.items()})
    print("\n\n".join(parts.values()))
    return 0 if finished else 3


def train_missing(
    study: Study, journal: Journal, trainer: Callable[[], Train], options: argparse.Namespace
) -> bool:
    """Do the runs that the journal lacks; False where ``--seconds`` ran out before."""
    missing = [found for found in study.runs() if key(*found) not in journal.done]
    if missing and options.seconds != 0 and "environment" not in journal.done:
        journal.add("environment", environment() | accelerator(options.device))
    begin = partial(Trainings, trainer, journal)
    here = begin()
    steps = [(key(*found), partial(here.train, *found)) for found in missing]
    with Workers(options.workers, begin) as workers:
        return run_steps(journal, steps, seconds=options.seconds, workers=workers)


class Trainings:
    """What trains; the data is loaded once, and only where something is trained."""

    def __init__(self, trainer: Callable[[], Train], journal: Journal) -> None:
        self.journal, self._loaded = journal, cache(trainer)

    def train(self, *found: Any) -> dict[str, Any]:
        """Do one run."""
        return self._loaded()(*found)


def accelerator(device: str) -> dict[str, str]:
    """The name of the GPU for the record of the environment; nothing for the CPU."""
    return {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}


def options_of(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, folder: Path, page: Path
) -> argparse.Namespace:
    """Options of a study.

    Its journal lies in the experiment's folder, so that it can go on anywhere.
    """
    parser.add_argument(
        "--seconds", type=float, help="stop after so long; the same command goes on"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that train at once")
    parser.add_argument("--fresh", action="store_true", help="forget what was run before")
    parser.add_argument("--quick", action="store_true", help="a toy run; needs --out")
    parser.add_argument("--out", type=Path, help="folder of the journal; the docs stay as they are")
    options = parser.parse_args(arguments)
    if options.quick and not options.out:
        parser.error(
            "--quick needs --out, so that the toy's journal does not mix with the real one"
        )
    options.part = "-full" if vars(options).get("full") else ""
    options.journal = (options.out or folder) / f"controls{options.part}.jsonl"
    options.page = None if options.out else page
    return options
