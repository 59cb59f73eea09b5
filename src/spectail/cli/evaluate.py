"""spectail evaluate: the perplexity of a language model on a text, or its scores on tasks of lm-eval."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from spectail.errors import EvaluationError
from spectail.evaluation import CHOICES, evaluate_tasks, perplexity
from spectail.evaluation.bos import check_choice
from spectail.evaluation.texts import HOW, read_text
from spectail.models.live.language import DTYPES, open_language_model

BOS = (
    f"Where the beginning-of-sequence token goes: {', '.join(CHOICES)}. first: the start of the text, every: "
    "the start of every block; auto, unless given, goes by the model and its tokenizer."
)


def evaluate(
    source: Annotated[
        str, typer.Argument(help="demo, a model folder that transformers loads, or a .gguf file.")
    ],
    text: Annotated[str | None, typer.Option(help=f"Text for token perplexity: {HOW}.")] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Tokens in a block; 2048 unless given.")
    ] = None,
    max_sequences: Annotated[int | None, typer.Option(help="Only the first blocks.")] = None,
    bos: Annotated[str | None, typer.Option(help=BOS)] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-eval, as hellaswag,winogrande.")
    ] = None,
    tasks_path: Annotated[Path | None, typer.Option(help="Folder with tasks of your own.")] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first questions of every task.")
    ] = None,
    few_shot: Annotated[int | None, typer.Option(help="Examples before a question.")] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences per forward pass.")] = 1,
    dtype: Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda...")] = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="Also write the numbers to this file, as JSON.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> int:
    """Measure a language model: token perplexity on a text, or tasks of lm-eval."""
    if (text is None) == (tasks is None):
        raise EvaluationError("give either --text FILE or --tasks NAMES")
    _check_used("--tasks", tasks, seq_len=seq_len, max_sequences=max_sequences, bos=bos)
    check_choice("auto" if bos is None else bos)
    _check_used("--text", text, tasks_path=tasks_path, limit=limit, few_shot=few_shot)
    if out is not None and out.exists():
        raise EvaluationError(f"{out} exists, so it stays; give another name")
    passage = None if text is None else read_text(text)
    model, tokenizer = open_language_model(source, dtype, device)
    if passage is not None:
        with _bar(quiet=quiet) as bar:
            ppl = perplexity(
                model, tokenizer, passage, seq_len=2048 if seq_len is None else seq_len, max_sequences=max_sequences,
                batch_size=batch_size, bos="auto" if bos is None else bos, progress=bar,
            )  # fmt: skip
        words, result = ppl.describe(), ppl.to_dict()
    else:
        result = evaluate_tasks(
            model, tokenizer, str(tasks).split(","), limit=limit, few_shot=few_shot, batch_size=batch_size,
            include_path=tasks_path,
        )  # fmt: skip
        words = "\n".join(_line(task, scores) for task, scores in result.items())
    if out is not None:
        out.write_text(
            json.dumps({"source": source, "dtype": dtype, **result}, indent=1) + "\n",
            encoding="utf-8",
        )
    Console(quiet=quiet, soft_wrap=True).print(words, highlight=False, markup=False)
    return 0


def _check_used(option: str, given: object, **others: object) -> None:
    """Refuse options that would change nothing."""
    for name, value in others.items():
        if given is not None and value is not None:
            raise EvaluationError(
                f"--{name.replace('_', '-')} does not go with {option}: leave it out"
            )


def _line(task: str, scores: dict[str, float]) -> str:
    """A task with its metrics, each with its standard error where there is one."""
    errors = {name: scores.get(f"{name}_stderr") for name in scores if not name.endswith("_stderr")}
    parts = (
        f"{name} {scores[name]:.4g}" + (f" +- {e:.2g}" if e is not None else "")
        for name, e in errors.items()
    )
    return f"{task}: {', '.join(parts)}"


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error that goes away when it is done."""
    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task("perplexity", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
