"""The command ``spectail sensitivity``: how much the loss grows with the error of each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.progress import TimeRemainingColumn

from spectail.allocation.sensitivities import check_free
from spectail.basics.files import check_writable
from spectail.cli.bar import Bar
from spectail.cli.options import Device, Exclude, Kind, Quiet, Type
from spectail.cli.terminal import Terminal
from spectail.evaluation.bos import CHOICES, check_choice
from spectail.evaluation.texts import HOW, read_text
from spectail.measuring.device import usable_device
from spectail.models.live.language import DTYPES, open_language_model
from spectail.pruning.calibration import calibration_tokens, check_draw
from spectail.results.table import storable
from spectail.sensitivity.measure import LEAST, LEAST_IN_HALF, NOISE, check_noise, sensitivities

Source: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="demo, a model folder that transformers loads, a .gguf file or a hub id.",
    ),
]
Calibration: TypeAlias = Annotated[str, typer.Option(help=f"Text: {HOW}.")]
Out: TypeAlias = Annotated[
    Path,
    typer.Option(help="The file to write, as JSON; the same command goes on with what it holds."),
]
Samples: TypeAlias = Annotated[int, typer.Option(help="Number of sequences of text.")]
SeqLen: TypeAlias = Annotated[int, typer.Option(help="Tokens in each sequence.")]
Noise: TypeAlias = Annotated[
    float,
    typer.Option(
        help="Squared norm of the noise, relative to that of the weights: "
        f"{LEAST:g} to 1, in half precision at least {LEAST_IN_HALF:g}."
    ),
]
Seed: TypeAlias = Annotated[int, typer.Option(help="Seed that draws the sequences and the noise.")]
Bos: TypeAlias = Annotated[
    str,
    typer.Option(
        help=f"Where the beginning-of-sequence token goes: {', '.join(CHOICES)}; see evaluate."
    ),
]
Dtype: TypeAlias = Annotated[
    str,
    typer.Option(
        help=f"{', '.join(DTYPES)}. Rounding in bfloat16 hides sensitivities below about 0.03."
    ),
]
Include: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="Also measure layers whose name matches this glob."),
]
Fresh: TypeAlias = Annotated[
    bool, typer.Option("--fresh", help="Measure anew, whatever the file holds.")
]


def sensitivity(
    source: Source,
    calibration: Calibration,
    out: Out,
    samples: Samples = 2,
    seq_len: SeqLen = 256,
    noise: Noise = NOISE,
    seed: Seed = 0,
    bos: Bos = "auto",
    include: Include = None,
    exclude: Exclude = None,
    kind: Kind = None,
    type: Type = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    fresh: Fresh = False,
    quiet: Quiet = False,
) -> int:
    """Measure how much the loss grows with the error of each layer, for bit widths."""
    # What can be refused without the model is refused before it is loaded, which takes long.
    check_free(out)
    check_writable(out)
    check_choice(bos)
    check_draw(samples, seq_len, seed)
    check_noise(noise)
    device = usable_device(device)
    text = read_text(calibration)
    with Terminal(stderr=True, quiet=quiet).status("loading the model"):
        model, tokenizer = open_language_model(source, dtype, device)
    tokens = calibration_tokens(
        tokenizer, text, samples=samples, seq_len=seq_len, seed=seed, bos=bos, model=model
    )
    with _Bar(quiet=quiet) as bar:
        found = sensitivities(
            model, tokens, noise=noise, seed=seed, include=include or (), exclude=exclude or (),
            kinds=kind or (), types=type or (), out=out, fresh=fresh, progress=bar,
        )  # fmt: skip
    console = Terminal(quiet=quiet, soft_wrap=True)
    if len(tokens) < samples:
        console.print(
            f"note: the text holds {len(tokens)} sequences of {seq_len} tokens, not {samples}",
            markup=False,
        )
    console.print(storable(found.summary()), highlight=False, markup=False)
    console.print(f"sensitivities: {out}", highlight=False, markup=False)
    return 0


class _Bar(Bar):
    """A progress bar with the layer in hand and the time that is left."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(TimeRemainingColumn(), quiet=quiet)

    def __call__(self, name: str | None, done: int, total: int) -> None:
        what = name or "measured"
        self.show(what if len(what) <= 56 else f"{what[:20]}…{what[-35:]}", done, total)
