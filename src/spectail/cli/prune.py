"""The command ``spectail prune``: write a pruned language model that transformers can load."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer
from rich.progress import TimeElapsedColumn

from spectail import presets
from spectail.basics.files import check_writable
from spectail.cli.bar import Bar
from spectail.cli.options import Device, Exclude, Kind, Quiet, Type
from spectail.cli.signals import INTERRUPTED
from spectail.cli.terminal import Terminal
from spectail.errors import PruneError
from spectail.evaluation.bos import CHOICES, check_choice
from spectail.evaluation.texts import HOW
from spectail.measuring.device import usable_device
from spectail.models.live.language import open_language_model
from spectail.models.naming.select import KindFilter
from spectail.pruning.allocators import (
    Allocator,
    allocator_names,
    as_allocator,
    check_eps,
    check_takes_eps,
    default_allocator,
)
from spectail.pruning.folders import PAGE_FILE, REPORT_FILE, check_free, save_pruned
from spectail.pruning.kept_scores import check_ours, discard, scores_beside
from spectail.pruning.methods import as_method, method_names
from spectail.pruning.page import prune_html
from spectail.pruning.pipeline import Pruned, PruningPlan, run
from spectail.pruning.quotas import Pattern
from spectail.pruning.texts import Texts, read_texts
from spectail.results.table import storable

_EPS = (
    "Strength of the allocation: ratios range over the mean times 1 +- EPS (for owl, lambda is EPS "
    "x the sparsity). auto chooses from "
    f"{', '.join(map(str, presets.PRUNE_EPS_CANDIDATES))} on the selection text. By "
    "default, the published setting."
)
_BOS = (
    f"Where the beginning-of-sequence token goes in every text: {', '.join(CHOICES)}; see spectail "
    "evaluate. Calibration samples start with it only for every."
)
_INCLUDE = (
    "Also prune layers that stay dense by default, such as a vision tower, if their name matches "
    "this glob."
)
_SELECTION = (
    "Text on which --eps auto compares its candidates; by default the last 10 % of --calibration, "
    "which then takes no part in calibration."
)

# Every option has a type of its own here, so that the command's signature can be read at a glance.
Source: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="demo, a model folder that transformers loads, a .gguf file, a hub id or hf://.",
    ),
]
Sparsity: TypeAlias = Annotated[
    float, typer.Option(help="Ratio of zeros over all matrices inside blocks.")
]
Out: TypeAlias = Annotated[
    Path, typer.Option(help="The folder to write; it must not exist, or be empty.")
]
Calibration: TypeAlias = Annotated[
    str | None, typer.Option(help=f"Text: {HOW}; all but magnitude need it.")
]
PatternText: TypeAlias = Annotated[
    str | None, typer.Option(help="2:4 for 2 zeros in every 4 weights along the input.")
]
Include: TypeAlias = Annotated[list[str] | None, typer.Option(help=_INCLUDE)]
Eps: TypeAlias = Annotated[str | None, typer.Option(help=_EPS)]
Selection: TypeAlias = Annotated[str | None, typer.Option(help=_SELECTION)]
Evaluate: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="Text to measure perplexity on, before and after; can be given several times."
    ),
]
Samples: TypeAlias = Annotated[int, typer.Option(help="Number of calibration sequences.")]
SeqLen: TypeAlias = Annotated[int, typer.Option(help="Tokens in each sequence of every text.")]
MaxSequences: TypeAlias = Annotated[
    int | None, typer.Option(help="Use only the first sequences of each test text.")
]
Seed: TypeAlias = Annotated[int, typer.Option(help="Seed that draws the calibration sequences.")]
Bos: TypeAlias = Annotated[str, typer.Option(help=_BOS)]


def prune(
    context: typer.Context,
    source: Source,
    sparsity: Sparsity,
    out: Out,
    # Written out here, the help is made when the command runs: it names methods and allocators
    # added at run time.
    method: Annotated[
        str, typer.Option(help=f"Which weights become zero: {', '.join(method_names())}.")
    ] = "wanda",
    allocation: Annotated[
        str | None,
        typer.Option(
            help="How many zeros each layer gets: "
            f"{', '.join(allocator_names())}, depth:FORM, depth-kind:FORM, or a file of "
            "spectail allocate. By default depth-kind:first-rising, for magnitude "
            "depth-kind:first-last, and with --eps auto the form that the text chooses."
        ),
    ] = None,
    calibration: Calibration = None,
    pattern: PatternText = None,
    include: Include = None,
    exclude: Exclude = None,
    kind: Kind = None,
    type: Type = None,
    eps: Eps = None,
    selection: Selection = None,
    evaluate: Evaluate = None,
    samples: Samples = 128,
    seq_len: SeqLen = 2048,
    max_sequences: MaxSequences = None,
    seed: Seed = 0,
    bos: Bos = "auto",
    device: Device = "cpu",
    quiet: Quiet = False,
) -> int:
    """Prune a language model by an allocation of sparsities and write it with a report."""
    # Everything that can be refused is refused before the model is loaded, which takes long.
    if (out / REPORT_FILE).exists():  # a run that was killed when the model was written
        discard(scores_beside(out))
    check_free(out)
    rule = as_method(method)
    allocator = (
        default_allocator(eps, by_inputs=rule.statistic is not None)
        if allocation is None
        else as_allocator(allocation)
    )
    check_choice(bos)
    plan = PruningPlan(
        method=rule, sparsity=sparsity, allocator=allocator,
        eps=_eps(eps, allocator), pattern=None if pattern is None else Pattern.parse(pattern),
        samples=samples, seq_len=seq_len, max_sequences=max_sequences, seed=seed, bos=bos,
        include=tuple(include or ()), exclude=tuple(exclude or ()),
        of=KindFilter.of(kind or (), type or ()),
    )  # fmt: skip
    _check_texts(plan, method, calibration, evaluate)
    tests, choosing = evaluate or (), plan.eps == "auto"
    if choosing:
        check_writable(scores_beside(out))
        check_ours(scores_beside(out))
    texts = read_texts(calibration=calibration, selection=selection, tests=tests, choosing=choosing)
    return _prune(context, plan, texts, source=source, out=out, device=device, quiet=quiet)


def _check_texts(
    plan: PruningPlan, method: str, calibration: str | None, tests: list[str] | None
) -> None:
    """Raise PruneError if a needed text is missing, or --bos is given and no text is read."""
    if plan.calibrates and calibration is None:
        raise PruneError(
            f"{method} with the allocation {plan.allocator.name} needs calibration text: "
            "give --calibration FILE"
        )
    if plan.bos != "auto" and not (plan.calibrates or plan.eps == "auto" or tests):
        raise PruneError("--bos goes with text, and this run reads none: leave it out")


def _prune(
    context: typer.Context,
    plan: PruningPlan,
    texts: Texts,
    *,
    source: str,
    out: Path,
    device: str,
    quiet: bool,
) -> int:
    """Load, prune and save the model, and return the exit code."""
    device = usable_device(device)
    scores = scores_beside(out)
    try:
        with Terminal(stderr=True, quiet=quiet).status("loading the model"):
            model, tokenizer = open_language_model(source, device=device)
        with _Bar(quiet=quiet) as bar:
            done = run(model, tokenizer, plan, texts, progress=bar, keep=scores)
        page = prune_html(done, source=source, command=_command(context))
        try:
            save_pruned(
                model, tokenizer, out, allocation=done.allocation, report=done.report, page=page
            )
        finally:  # a full disk must not cost the user the numbers
            _show(Terminal(quiet=quiet, soft_wrap=True), plan, done)
        if done.report.selected:
            discard(scores)
    except KeyboardInterrupt as stopped:
        # The folder appears complete or not at all, so there is nothing to clean up.
        rest = "nothing was written"
        if plan.eps == "auto" and scores.exists():
            rest = f"no model was written; the same command goes on with the scores in {scores}"
        told = f"{str(stopped) or 'interrupted'}; {rest}"
        Terminal(stderr=True, soft_wrap=True).print(told)
        return INTERRUPTED
    Terminal(quiet=quiet, soft_wrap=True).print(f"model: {out}\nreport: {out / PAGE_FILE}")
    return 0


def _show(console: Terminal, plan: PruningPlan, done: Pruned) -> None:
    """Print what was pruned and how well the model does."""
    used = done.report.calibration
    if used and used[0] < plan.samples:
        console.print(
            f"note: the text holds {used[0]} sequences of {plan.seq_len} tokens, "
            f"not {plan.samples}",
            markup=False,
        )
    console.print(storable(done.report.summary()))


def _eps(given: str | None, allocator: Allocator) -> float | Literal["auto"] | None:
    """Parse ``--eps``: a number, ``auto`` or nothing."""
    if given is None:
        return None
    check_takes_eps(allocator)
    if given == "auto":
        return "auto"
    try:
        return check_eps(float(given))
    except ValueError:
        raise PruneError(f"eps must be a number from 0 to 1, or auto, not {given!r}") from None


def _command(context: typer.Context) -> str:
    """Return the command that repeats this run into another folder, without default values."""
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
    """A progress bar with the current step and the time since the start."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(TimeElapsedColumn(), quiet=quiet)

    def __call__(self, what: str, done: int, total: int | None) -> None:
        self.show(what if len(what) <= 56 else f"{what[:20]}…{what[-35:]}", done, total)
