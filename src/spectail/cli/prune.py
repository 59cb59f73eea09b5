"""spectail prune: a language model with zeros in it, as a folder that transformers loads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import TimeElapsedColumn

from spectail import presets
from spectail.cli.bar import Bar
from spectail.errors import PruneError
from spectail.evaluation.bos import CHOICES, check_choice
from spectail.evaluation.texts import HOW
from spectail.models.live.language import open_language_model
from spectail.pruning.baselines import BASELINES, check_eps, check_known, check_takes_eps
from spectail.pruning.folders import PAGE_FILE, check_free, save_pruned
from spectail.pruning.methods import as_method, method_names
from spectail.pruning.page import prune_html
from spectail.pruning.pipeline import PruningPlan, run
from spectail.pruning.quotas import Pattern
from spectail.pruning.texts import read_texts
from spectail.results.table import storable

EPS = (
    "How far ratios go from the mean, 1 +- EPS (owl: lambda is EPS x the sparsity); auto chooses from "
    f"{', '.join(map(str, presets.PRUNE_EPS_CANDIDATES))} on the selection text. Unless given, the published settings."
)

BOS = (
    f"Where the beginning-of-sequence token goes in every text: {', '.join(CHOICES)}; see spectail evaluate. "
    "Calibration samples start with it under every only."
)


def prune(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="demo, a model folder that transformers loads, a .gguf file or a hub id."
        ),
    ],
    sparsity: Annotated[
        float, typer.Option(help="Ratio of zeros over all matrices inside blocks.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist, or be empty.")],
    method: Annotated[str, typer.Option(help=f"{', '.join(method_names())}.")] = "wanda",
    allocation: Annotated[
        str, typer.Option(help=f"{', '.join(BASELINES)}, or a file of spectail allocate.")
    ] = "farms",
    calibration: Annotated[
        str | None, typer.Option(help=f"Text: {HOW}; all but magnitude need it.")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="2:4 for 2 zeros in every 4 weights along the input.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="Also layers whose name matches this glob, which stay dense by themselves (a vision tower)."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="No layers whose name matches this glob.")
    ] = None,
    eps: Annotated[str | None, typer.Option(help=EPS)] = None,
    selection: Annotated[
        str | None,
        typer.Option(
            help="Text that --eps auto chooses by; else the last 10 % of --calibration, kept from it."
        ),
    ] = None,
    evaluate: Annotated[
        list[str] | None,
        typer.Option(help="Test text: perplexity before and after; may be given again."),
    ] = None,
    samples: Annotated[int, typer.Option(help="Sequences of calibration text.")] = 128,
    seq_len: Annotated[int, typer.Option(help="Tokens in a sequence, of every text.")] = 2048,
    max_sequences: Annotated[
        int | None, typer.Option(help="Only the first sequences of a test text.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Which sequences of the calibration text are drawn.")
    ] = 0,
    bos: Annotated[str, typer.Option(help=BOS)] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda...")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> int:
    """Prune a language model by an allocation of sparsities and write it as a transformers folder with a report."""
    check_free(out)
    check_known(allocation)
    check_choice(bos)
    if not 0 <= sparsity < 1:
        raise PruneError(f"a sparsity must be at least 0 and below 1, not {sparsity!r}")
    plan = PruningPlan(
        method=as_method(method), sparsity=sparsity, allocation=allocation, eps=_eps(eps, allocation),
        pattern=Pattern.parse(pattern) if pattern else None, samples=samples, seq_len=seq_len,
        max_sequences=max_sequences, seed=seed, bos=bos,
        include=tuple(include or ()), exclude=tuple(exclude or ()),
    )  # fmt: skip
    if plan.calibrates and calibration is None:
        raise PruneError(
            f"{method} with the allocation {allocation} needs calibration text: give --calibration FILE"
        )
    if bos != "auto" and not (plan.calibrates or plan.eps == "auto" or evaluate):
        raise PruneError("--bos goes with text, and this run reads none: leave it out")
    texts = read_texts(
        calibration=calibration,
        selection=selection,
        tests=evaluate or (),
        choosing=plan.eps == "auto",
    )
    try:
        with Console(stderr=True, quiet=quiet).status("loading the model"):
            model, tokenizer = open_language_model(source, device=device)
        with _Bar(quiet=quiet) as bar:
            done = run(model, tokenizer, plan, texts, progress=bar)
        page = prune_html(done, source=source, command=_command(context))
        save_pruned(
            model, tokenizer, out, allocation=done.allocation, report=done.report, page=page
        )
    except KeyboardInterrupt as stopped:
        told = f"{str(stopped) or 'interrupted'}; nothing was written"
        Console(stderr=True, highlight=False, soft_wrap=True).print(told, markup=False)
        return 130
    console = Console(quiet=quiet, soft_wrap=True, highlight=False)
    used = done.report.calibration
    if used and used[0] < samples:
        console.print(
            f"note: the text holds {used[0]} sequences of {seq_len} tokens, not {samples}",
            markup=False,
        )
    console.print(storable(done.report.summary()), markup=False)
    console.print(f"model: {out}\nreport: {out / PAGE_FILE}", markup=False)
    return 0


def _eps(given: str | None, allocation: str) -> float | Literal["auto"] | None:
    """What ``--eps`` says: a number, ``auto`` or nothing."""
    if given is None:
        return None
    check_takes_eps(allocation)
    if given == "auto":
        return "auto"
    try:
        return check_eps(float(given))
    except ValueError:
        raise PruneError(f"eps must be a number from 0 to 1, or auto, not {given!r}") from None


def _command(context: typer.Context) -> str:
    """The command that does the same again, into another folder: what was given, without what is the default."""
    words = ["spectail", "prune"]
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if option.param_type_name == "argument":
            words.append(str(value))
        elif option.name == "out":
            words += ["--out", "DIR"]
        elif value not in (None, (), [], option.default) and option.name != "quiet":
            values = value if isinstance(value, list | tuple) else [value]
            words += [word for one in values for word in (option.opts[0], str(one))]
    return shlex.join(words)


class _Bar(Bar):
    """The step in hand and the time since the start."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(TimeElapsedColumn(), quiet=quiet)

    def __call__(self, what: str, done: int, total: int | None) -> None:
        self.show(what if len(what) <= 56 else f"{what[:20]}…{what[-35:]}", done, total)
