"""Open an experiment: the model, its texts and the journal of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from experiments.allocation.steps import Experiment, Settings
from experiments.allocation.subjects import Subject, open_model
from experiments.common import ROOT, WORK, Journal
from experiments.pruning.texts import Texts, installed
from experiments.pruning.toy import toy

JOURNALS = ROOT / "experiments" / "allocation" / "journals"
"""Kept in the repository: a run of many hours goes on anywhere."""


def open_experiment(
    name: str,
    settings: Settings,
    device: str,
    *,
    quick: bool = False,
    fresh: bool = False,
    journal: Journal | None = None,
) -> Experiment:
    """The steps over one model; ``quick`` takes a toy.

    A worker process is given the ``journal`` that its parent has opened.
    """
    torch.manual_seed(0)
    model, tokenizer, texts = _inputs(name, quick)
    sizes = {"calibration": texts.calibration, "selection": texts.selection, **texts.tests}
    kept = settings.to_dict() | {"texts": {name: len(text) for name, text in sizes.items()}}
    path = (WORK / "quick" if quick else JOURNALS) / f"{Path(name).stem}.jsonl"
    journal = journal or Journal.open(path, kept, fresh=fresh)
    subject = Subject(model.to(device))
    check_same_model(path, journal.done.get("variances"), subject)
    return Experiment(subject, tokenizer, texts, settings=settings, journal=journal)


def check_same_model(path: Path, known: Mapping[str, float] | None, subject: Subject) -> None:
    """Raise ValueError if the variances that a journal holds are those of another model.

    A journal has the last part of the model's path as its name, which two models may share.
    """
    if known is None:
        return
    found = {
        weight.name: float(values.double().var(correction=0))
        for weight, values in zip(subject.weights, subject.first, strict=True)
    }
    same = known.keys() == found.keys() and all(
        math.isclose(variance, found[name], rel_tol=1e-4) for name, variance in known.items()
    )
    if not same:
        raise ValueError(
            f"{path} holds a run with another model of this name; rename the folder of this one, "
            f"or start anew with --fresh"
        )


def _inputs(name: str, quick: bool) -> tuple[Any, Any, Texts]:
    return toy() if quick else (*open_model(name), installed())
