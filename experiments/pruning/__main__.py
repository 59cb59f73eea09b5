"""``python -m experiments.pruning``: prune one language model by every allocation.

Table, plot and docs page.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.common import Journal, on_device, publish, run_options, run_steps
from experiments.pruning.draw import draw, tables
from experiments.pruning.steps import FULL, Experiment, Settings
from experiments.pruning.summary import summarise
from experiments.pruning.texts import Texts, given, installed
from experiments.pruning.toy import toy
from spectail.basics.files import write_text
from spectail.models.live.language import open_language_model

QUICK = Settings(
    eps=(0.2,),
    eps_magnitude=(0.2, 0.4),
    seeds=2,
    seq_len=32,
    calibration=4,
    selection=2,
    tests=2,
    dtype="float32",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and write what is complete.

    0 when all is done, 3 when ``--seconds`` ran out before.
    """
    options = _options(arguments)
    settings = QUICK if options.quick else FULL if options.full else Settings()
    model, tokenizer, texts = _inputs(options, settings)
    kept = settings.to_dict() | {
        "model": "toy" if options.quick else options.model,
        "texts": _sizes(texts),
    }
    kept |= on_device(options.device)
    journal = Journal.open(options.work / "pruning.jsonl", kept, fresh=options.fresh)
    if options.fresh:
        shutil.rmtree(options.work / "pruning", ignore_errors=True)
    experiment = Experiment(
        model, tokenizer, texts, settings=settings, journal=journal, work=options.work / "pruning"
    )
    started = time.perf_counter()
    finished = run_steps(journal, experiment.steps(), seconds=options.seconds)
    if finished:
        left = (
            None if options.seconds is None else options.seconds - (time.perf_counter() - started)
        )
        finished = run_steps(journal, experiment.finals(), seconds=left)
    summary = summarise(journal.done, settings, list(texts.tests))
    if not summary["tests"]:
        return 3
    alphas = {
        key.removeprefix("alphas | "): v
        for key, v in journal.done.items()
        if key.startswith("alphas | ")
    }
    parts = tables(summary)
    publish(options, {"settings": kept, **summary, "block alphas": alphas}, parts)
    draw(summary, options.image)
    write_text(options.out / "tables.md", "\n\n".join(parts.values()) + "\n")
    return 0 if finished else 3


def _inputs(options: argparse.Namespace, settings: Settings) -> tuple[Any, Any, Texts]:
    if options.quick:
        return toy()
    own = (options.calibration, options.selection, options.test)
    if any(own) and not all(own):
        raise SystemExit(
            "give --calibration, --selection and --test together: no text may serve two ends"
        )
    texts = given(*own) if all(own) else installed()
    model, tokenizer = open_language_model(options.model)
    return model.to(getattr(torch, settings.dtype)).to(options.device), tokenizer, texts


def _sizes(texts: Texts) -> dict[str, int]:
    """Letters of every text: with other texts it is another run."""
    named = {"calibration": texts.calibration, "selection": texts.selection} | dict(texts.tests)
    return {name: len(text) for name, text in named.items()}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.pruning", description=__doc__)
    parser.add_argument(
        "--model", default="demo", help="a transformers folder, a .gguf file, a hub id or demo"
    )
    parser.add_argument(
        "--calibration", type=Path, help="a text file, in place of the installed texts"
    )
    parser.add_argument("--selection", type=Path, help="another, by which settings are chosen")
    parser.add_argument(
        "--test", action="append", default=[], metavar="NAME=FILE", help="others, for tests"
    )
    parser.add_argument("--full", action="store_true", help="the grid for a GPU")
    return run_options(parser, arguments, "pruning")


if __name__ == "__main__":
    sys.exit(main())
