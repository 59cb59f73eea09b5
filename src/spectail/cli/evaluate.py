"""The command ``spectail evaluate``: perplexity on a text, or scores on tasks of lm-eval."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from spectail.basics.files import check_writable, write_text
from spectail.cli.bar import Bar
from spectail.cli.options import Device, Json, Quiet, console_for, only_json, print_json
from spectail.errors import EvaluationError
from spectail.evaluation import CHOICES, evaluate_tasks, perplexity
from spectail.evaluation.bos import check_choice
from spectail.evaluation.texts import HOW, read_text
from spectail.measuring.device import usable_device
from spectail.models.live.inner import inner_language_model
from spectail.models.live.language import DTYPES, open_language_model

_BOS = (
    f"Where the beginning-of-sequence token goes: {', '.join(CHOICES)}. first: the start of the "
    "text, every: the start of every block; auto, the default, follows the model and its tokenizer."
)

Source: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="demo, a model folder that transformers loads, a .gguf file, a hub id or hf://.",
    ),
]
Text: TypeAlias = Annotated[str | None, typer.Option(help=f"Text for token perplexity: {HOW}.")]
SeqLen: TypeAlias = Annotated[int | None, typer.Option(help="Tokens in a block; by default 2048.")]
MaxSequences: TypeAlias = Annotated[
    int | None, typer.Option(help="Use only the first blocks of the text.")
]
Bos: TypeAlias = Annotated[str | None, typer.Option(help=_BOS)]
Tasks: TypeAlias = Annotated[
    str | None, typer.Option(help="Tasks of lm-eval, as hellaswag,winogrande.")
]
TasksPath: TypeAlias = Annotated[Path | None, typer.Option(help="Folder with tasks of your own.")]
Limit: TypeAlias = Annotated[
    int | None, typer.Option(help="Use only the first questions of every task.")
]
FewShot: TypeAlias = Annotated[
    int | None, typer.Option(help="Number of examples before each question.")
]
BatchSize: TypeAlias = Annotated[int, typer.Option(help="Sequences per forward pass.")]
Dtype: TypeAlias = Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}.")]
Include: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="Evaluate the language model, inside a larger one, whose layers match this glob."
    ),
]
Exclude: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="Leave layers that match this glob out of --include.")
]
Out: TypeAlias = Annotated[
    Path | None, typer.Option(help="Also write the numbers to this file, as JSON.")
]


def evaluate(
    source: Source,
    text: Text = None,
    seq_len: SeqLen = None,
    max_sequences: MaxSequences = None,
    bos: Bos = None,
    tasks: Tasks = None,
    tasks_path: TasksPath = None,
    limit: Limit = None,
    few_shot: FewShot = None,
    batch_size: BatchSize = 1,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    include: Include = None,
    exclude: Exclude = None,
    out: Out = None,
    json_wanted: Json = False,
    quiet: Quiet = False,
) -> int:
    """Measure a language model: token perplexity on a text, or tasks of lm-eval."""
    if (text is None) == (tasks is None):
        raise EvaluationError("give either --text FILE or --tasks NAMES")
    _check_used("--tasks", tasks, seq_len=seq_len, max_sequences=max_sequences, bos=bos)
    check_choice("auto" if bos is None else bos)
    _check_used("--text", text, tasks_path=tasks_path, limit=limit, few_shot=few_shot)
    if out is not None:
        check_writable(out)
        if out.exists():
            raise EvaluationError(f"{out} exists, so it stays; give another name")
    device = usable_device(device)
    # Read the text first: a missing file should not cost the time to load the model.
    passage = None if text is None else read_text(text)
    with only_json(json_wanted):
        model, tokenizer = open_language_model(source, dtype, device)
        model = inner_language_model(model, include or (), exclude or ())
        if passage is not None:
            with Bar(quiet=quiet) as bar:
                ppl = perplexity(
                    model, tokenizer, passage, seq_len=2048 if seq_len is None else seq_len,
                    max_sequences=max_sequences, batch_size=batch_size,
                    bos="auto" if bos is None else bos, progress=partial(bar.show, "perplexity"),
                )  # fmt: skip
            words, result = ppl.describe(), ppl.to_dict()
        else:
            result = evaluate_tasks(
                model, tokenizer, str(tasks).split(","), limit=limit, few_shot=few_shot,
                batch_size=batch_size, include_path=tasks_path,
            )  # fmt: skip
            words = "\n".join(_line(task, scores) for task, scores in result.items())
    numbers = {"source": source, "dtype": dtype, **result}
    try:
        if out is not None:
            write_text(out, json.dumps(numbers, indent=1) + "\n")
    finally:  # a full disk must not cost the user the numbers
        console_for(json_wanted, quiet=quiet).print(words, highlight=False, markup=False)
        if json_wanted:
            print_json(numbers)
    return 0


def _check_used(option: str, given: object, **others: object) -> None:
    """Raise EvaluationError for options that have no effect together with ``option``."""
    for name, value in others.items():
        if given is not None and value is not None:
            raise EvaluationError(
                f"--{name.replace('_', '-')} does not go with {option}: leave it out"
            )


def _line(task: str, scores: dict[str, float]) -> str:
    """Describe a task with its metrics and their standard errors, if there are any."""
    # lm-eval names the standard error of ``acc`` ``acc_stderr``.
    errors = {name: scores.get(f"{name}_stderr") for name in scores if not name.endswith("_stderr")}
    parts = (
        f"{name} {scores[name]:.4g}" + (f" +- {e:.2g}" if e is not None else "")
        for name, e in errors.items()
    )
    return f"{task}: {', '.join(parts)}"
