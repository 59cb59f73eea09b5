"""``python -m experiments.bits``: widths by every rule at equal size, on one model at a time."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.bits.steps import Experiment, Settings
from experiments.bits.subject import Subject
from experiments.bits.summary import summarise, tables
from experiments.common import ROOT, Journal, on_device, publish, run_options, run_steps, steps_in
from experiments.pruning.texts import Texts, installed
from experiments.pruning.toy import toy
from spectail.basics.files import write_text
from spectail.models.live.language import open_language_model

QUICK = Settings(draws=2, seq_len=32, selection=2, tests=2, noise_tokens=(1, 32), dtype="float32")
JOURNALS = ROOT / "experiments" / "bits" / "journals"
"""Kept in the repository, one for each model: a run of hours goes on anywhere."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and write what is complete; 0 if all is done, 3 if time ran out."""
    options = _options(arguments)
    settings = QUICK if options.quick else Settings()
    folder = JOURNALS if options.page else options.work
    finished = options.tables or _run(options, settings, folder)
    found = {
        path.stem: summarise(steps_in(path), settings) for path in sorted(folder.glob("*.jsonl"))
    }
    models = {name: summary for name, summary in found.items() if summary}
    parts = tables(models)
    publish(options, {"settings": settings.to_dict(), "models": models}, parts)
    write_text(options.out / "tables.md", "\n\n".join(parts.values()) + "\n")
    return 0 if finished else 3


def _run(options: argparse.Namespace, settings: Settings, folder: Path) -> bool:
    """Do the steps that the model's journal lacks."""
    model, tokenizer, texts = _inputs(options)
    sizes = {"calibration": texts.calibration, "selection": texts.selection, **texts.tests}
    kept = settings.to_dict() | {"texts": {name: len(text) for name, text in sizes.items()}}
    kept |= on_device(options.device)
    path = folder / f"{options.name}.jsonl"
    journal = Journal.open(path, kept, fresh=options.fresh)
    subject = Subject(model.to(options.device), getattr(torch, settings.dtype))
    check_same_model(path, journal.done.get("layers"), subject)
    experiment = Experiment(subject, tokenizer, texts, settings=settings, journal=journal)
    return run_steps(journal, experiment.steps(), seconds=options.seconds)


def check_same_model(path: Path, known: Mapping[str, Any] | None, subject: Subject) -> None:
    """Raise ValueError if the layers that a journal holds are those of another model.

    The journal's settings do not name the model, whose file lies elsewhere on another machine.
    """
    if known is None:
        return
    found = {
        weight.name: (list(values.shape), float(values.double().var(correction=0)))
        for weight, values in zip(subject.weights, subject.first, strict=True)
    }
    kept = {name: (x["shape"], x["variance"]) for name, x in known.items()}
    same = kept.keys() == found.keys() and all(
        shape == found[name][0] and math.isclose(variance, found[name][1], rel_tol=1e-4)
        for name, (shape, variance) in kept.items()
    )
    if not same:
        raise ValueError(
            f"{path} holds a run with another model; give this one another --name, or start anew "
            f"with --fresh"
        )


def _inputs(options: argparse.Namespace) -> tuple[Any, Any, Texts]:
    return toy() if options.quick else (*open_language_model(options.model), installed())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.bits", description=__doc__)
    parser.add_argument("--model", default="demo", help="a transformers folder or a .gguf file")
    parser.add_argument("--name", default="SmolLM2-135M", help="its name in the tables")
    parser.add_argument("--tables", action="store_true", help="run nothing, write the tables")
    parser.set_defaults(full=False)
    return run_options(parser, arguments, "bits")


if __name__ == "__main__":
    sys.exit(main())
