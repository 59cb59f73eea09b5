"""spectail prune: a language model with zeros in it, as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from spectail.errors import PruneError
from spectail.pruning.baselines import BASELINES, NEEDS_TEXT, allocation_named
from spectail.pruning.calibration import calibration_tokens
from spectail.pruning.folders import check_free, load_model, read_text, save_pruned
from spectail.pruning.methods import BY_NAME, as_method
from spectail.pruning.prune import PruningInterrupted
from spectail.pruning.prune import prune as prune_model
from spectail.pruning.quotas import Pattern
from spectail.report.tables import storable


def prune(
    source: Annotated[str, typer.Argument(help="A transformers model folder, a hub id or demo.")],
    sparsity: Annotated[float, typer.Option(help="Ratio of zeros over all matrices inside blocks.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist, or be empty.")],
    method: Annotated[str, typer.Option(help=f"{', '.join(BY_NAME)}.")] = "wanda",
    allocation: Annotated[str, typer.Option(help=f"{', '.join(BASELINES)}, or a file of spectail allocate.")] = "farms",
    calibration: Annotated[Path | None, typer.Option(help="Text file; all but magnitude need it.")] = None,
    pattern: Annotated[str | None, typer.Option(help="2:4 for 2 zeros in every 4 weights along the input.")] = None,
    eps: Annotated[float | None, typer.Option(help="How far ratios by alpha go from the mean, 1 +- EPS.")] = None,
    samples: Annotated[int, typer.Option(help="Sequences of calibration text.")] = 128,
    seq_len: Annotated[int, typer.Option(help="Tokens in each.")] = 2048,
    seed: Annotated[int, typer.Option(help="Which sequences of the text are drawn.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda...")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> int:
    """Prune a language model by an allocation of sparsities and write it as a transformers folder."""
    check_free(out)
    rule = as_method(method)
    groups_of = Pattern.parse(pattern) if pattern else None
    if not 0 <= sparsity < 1:
        raise PruneError(f"a sparsity must be at least 0 and below 1, not {sparsity!r}")
    needs_text = rule.statistic is not None or allocation in NEEDS_TEXT
    if needs_text and calibration is None:
        raise PruneError(f"{method} with the allocation {allocation} needs calibration text: give --calibration FILE")
    text = read_text(calibration) if needs_text and calibration else None
    console = Console(quiet=quiet, soft_wrap=True)
    errors = Console(stderr=True, quiet=quiet)
    with errors.status("loading the model"):
        model, tokenizer = load_model(source, device=device)
        tokens = None
        if text is not None:
            tokens = calibration_tokens(tokenizer, text, samples=samples, seq_len=seq_len, seed=seed)
    with errors.status(f"sharing out the sparsity: {allocation}"):
        shared = allocation_named(allocation, model, sparsity, eps=eps, calibration=tokens)
    try:
        with _Bar(quiet=quiet) as bar:
            report = prune_model(model, shared, method=rule, calibration=tokens, pattern=groups_of, progress=bar)
    except PruningInterrupted as stopped:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"{stopped}; nothing was written", markup=False)
        return 130
    save_pruned(model, tokenizer, out, allocation=shared, report=report)
    if tokens is not None and len(tokens) < samples:
        console.print(f"note: the text holds {len(tokens)} sequences of {seq_len} tokens, not {samples}")
    console.print(storable(report.summary()), highlight=False, markup=False)
    console.print(f"model: {out}", highlight=False, markup=False)
    return 0


class _Bar:
    """A progress bar on standard error with the block or layer in hand, weighed by numbers of weights."""

    def __init__(self, *, quiet: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        console = Console(stderr=True)
        self.progress = Progress(*columns, TimeElapsedColumn(), console=console, disable=quiet, transient=True)
        self.task = self.progress.add_task("starting", total=None)

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.progress.stop()

    def __call__(self, name: str | None, done: int, total: int) -> None:
        self.progress.update(self.task, description=(name or "pruned")[-44:], completed=done, total=total)
