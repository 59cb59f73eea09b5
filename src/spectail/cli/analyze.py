"""The command ``spectail analyze``: measure a model, save the run, show the extreme layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from spectail import presets
from spectail.analysis import Analysis
from spectail.cli.checkpoints import analyze_checkpoints
from spectail.cli.options import (
    Exclude,
    Json,
    Kind,
    Quiet,
    Type,
    console_for,
)
from spectail.cli.runner import Runner
from spectail.core.cutoffs import cutoff_forms
from spectail.core.spec import Spec
from spectail.errors import RunError, SpecError
from spectail.measuring.engines import engine_named
from spectail.measuring.shards import Shard

Sources: TypeAlias = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="demo, a model folder, a checkpoint file, an address (hf://, s3://, gs://, https://), "
        "module:function or a hub id; or several checkpoints of one training run.",
    ),
]
Out: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder for tables and report; a killed run continues there. Needed without --json."
    ),
]
Base: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Measure what changed: the weights minus those of this model, layer by layer.",
    ),
]
Preset: TypeAlias = Annotated[
    str, typer.Option(help=f"The settings of a paper or tool: {', '.join(presets.BY_NAME)}.")
]
AspectRatio: TypeAlias = Annotated[
    float | None, typer.Option(help="Long side / short side of the windows.")
]
WindowSize: TypeAlias = Annotated[
    str | None, typer.Option(help="Short side of the windows: a number, common, fit or whole.")
]
PlacementText: TypeAlias = Annotated[
    str | None, typer.Option(help="Where windows are placed: tile, grid:K, step:S or random:N.")
]
Tolerance: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Measure no more windows of a layer when the rest would change its alpha by less than "
        "this ratio; 0.01 is 1 %."
    ),
]
Device: TypeAlias = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda...")]
Include: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="Measure only layers whose name matches this glob.")
]
EngineName: TypeAlias = Annotated[
    str, typer.Option(help="What runs the measurement: local or ray.")
]
RayAddress: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Address of a Ray cluster, host:port or auto, for --engine ray; without it one is "
        "started on this machine unless one runs."
    ),
]
ShardText: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Measure part I of N only, from 1/N to N/N; spectail merge joins the parts.",
    ),
]
FullSpectrum: TypeAlias = Annotated[
    bool, typer.Option("--full-spectrum", help="Also measure whole matrices, without windows.")
]
Source: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="demo, a model folder, a checkpoint file, an address (hf://, s3://, gs://, https://), "
        "module:function or a hub id.",
    ),
]
QuantizationErrors: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--quantization-errors",
        help="Also measure the error of each format, for allocate --target bits; "
        "a finished run is completed.",
    ),
]
TrapsAsked: TypeAlias = Annotated[
    bool,
    typer.Option("--traps", help="Also look for large eigenvalues that remain after shuffling."),
]
ErgAsked: TypeAlias = Annotated[
    bool, typer.Option("--erg", help="Also compare the tail with the ERG condition of SETOL.")
]
Fresh: TypeAlias = Annotated[
    bool, typer.Option("--fresh", help="Replace the run in the folder in place of continuing it.")
]


def analyze(
    sources: Sources,
    out: Out = None,
    base: Base = None,
    preset: Preset = "farms",
    aspect_ratio: AspectRatio = None,
    window: WindowSize = None,
    placement: PlacementText = None,
    # Written out here, the help is made when the command runs: it names cutoffs added at run time.
    cutoff: Annotated[
        str | None, typer.Option(help=f"Where the tail starts: {cutoff_forms()}.")
    ] = None,
    tolerance: Tolerance = None,
    device: Device = "auto",
    include: Include = None,
    exclude: Exclude = None,
    kind: Kind = None,
    type: Type = None,
    engine: EngineName = "local",
    ray_address: RayAddress = None,
    shard: ShardText = None,
    full_spectrum: FullSpectrum = False,
    quantization_errors: QuantizationErrors = False,
    traps: TrapsAsked = False,
    erg: ErgAsked = False,
    fresh: Fresh = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Measure the tail exponent alpha of all weight matrices; write a table and report."""
    _check_out(out, json, shard=shard, fresh=fresh)
    options = {"window": window, "placement": placement, "cutoff": cutoff, "tolerance": tolerance}
    runner = Runner(
        console=console_for(json, quiet=quiet),
        measure=engine_named(engine, ray_address),
        settings={
            "spec": spec_of(preset, aspect_ratio=aspect_ratio, **options),
            "base": base,
            "device": device,
            "include": include or (),
            "exclude": exclude or (),
            "kinds": kind or (),
            "types": type or (),
            "full_spectrum": full_spectrum,
            "quantization_errors": quantization_errors,
            "traps": traps,
            "erg": erg,
        },
        shard=None if shard is None else Shard.of(shard),
        fresh=fresh,
        json=json,
    )
    if len(sources) > 1:
        return analyze_checkpoints(runner, sources, out)
    analysis = runner(sources[0], out, values_of if json else None)
    if runner.shard:
        runner.console.print(f"{runner.shard.words}; spectail merge {out} joins the parts")
    return 1 if any(layer.status == "failed" for layer in analysis.layers) else 0


def _check_out(out: Path | None, json: bool, **others: object) -> None:
    """Raise RunError if no place for the results is given, or an option needs a folder."""
    if out is not None:
        return
    if not json:
        raise RunError("give --out DIR, a folder for the results, or --json to print them")
    for name, value in others.items():
        if value:
            raise RunError(f"--{name} needs --out DIR, the folder of the run")


def values_of(analysis: Analysis) -> dict[str, Any]:
    """Return what ``--json`` prints: the settings, the summary and the rows of the table."""
    return {
        "run": analysis.run.to_dict(),
        "summary": analysis.summary().to_dict(),
        "layers": [layer.row() for layer in analysis.layers],
    }


def spec_of(preset: str, **options: Any) -> Spec:
    """Return the preset with the given options in place of its own."""
    if preset not in presets.BY_NAME:
        raise SpecError(f"preset must be one of {', '.join(presets.BY_NAME)}, not {preset!r}")
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    # --window takes a word or a number, and typer passes both as text.
    # Python does not read numbers of thousands of digits.
    if (text := str(given.get("window", ""))).isdecimal() and len(text) <= 18:
        given["window"] = int(text)
    return replace(presets.BY_NAME[preset], **given)
