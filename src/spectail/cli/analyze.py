"""The command ``spectail analyze``: measure a model, save the run, show the extreme layers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from spectail import presets
from spectail.analysis import Analysis
from spectail.basics.texts import visible
from spectail.cli.bar import Bar
from spectail.cli.checkpoints import analyze_checkpoints
from spectail.cli.options import (
    Exclude,
    Json,
    Kind,
    Quiet,
    Type,
    console_for,
    only_json,
    print_json,
)
from spectail.cli.terminal import Terminal
from spectail.core.cutoffs import cutoff_forms
from spectail.core.spec import Spec
from spectail.errors import RunError, SpecError
from spectail.measuring.engines import Engine, engine_named, is_elsewhere
from spectail.measuring.journal import Journal
from spectail.measuring.layer import Plan
from spectail.measuring.run import make_plan, measure_plan
from spectail.measuring.shards import Shard, open_run, part_of
from spectail.models.source import Layer
from spectail.results.table import extremes, storable

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


@dataclass(frozen=True, kw_only=True)
class Runner:
    """What one source after the other is measured with."""

    console: Terminal
    measure: Engine
    settings: dict[str, Any]
    """Arguments of ``make_plan``."""
    shard: Shard | None
    fresh: bool
    json: bool

    def __call__(
        self, source: str, out: Path | None, values: Callable[[Analysis], Any] | None = None
    ) -> Analysis:
        """Measure a source, store it in ``out``, print the results, and ``values`` as JSON."""
        # A spinner only in a terminal: elsewhere its text would be mixed into the output.
        opening = self.console.status("opening the model")
        quiet = self.console.quiet or not self.console.is_terminal
        with nullcontext() if quiet else opening, only_json(self.json):
            plan = make_plan(source, **self.settings, elsewhere=is_elsewhere(self.measure))
        if out is None:
            return self._measured(plan, None, values)
        with open_run(out, plan, self.shard, fresh=self.fresh) as journal:
            return self._measured(part_of(plan, self.shard), journal, values)

    def _measured(
        self, plan: Plan, journal: Journal | None, values: Callable[[Analysis], Any] | None
    ) -> Analysis:
        """Measure what the plan holds, store it if there is a journal, and print the results."""
        with _Bar(quiet=self.console.quiet) as bar, only_json(self.json):
            analysis = measure_plan(plan, self.measure, journal, progress=bar)
        try:
            if journal:
                journal.finish(analysis)
        finally:  # a full disk must not cost the user the numbers
            show(self.console, analysis)
            if values:
                print_json(values(analysis))
        if journal:
            self.console.print(f"report: {journal.path.parent / 'report.html'}")
        return analysis


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
    if str(given.get("window", "")).isdecimal():
        given["window"] = int(given["window"])
    return replace(presets.BY_NAME[preset], **given)


class _Bar(Bar):
    """A progress bar with the current layer and the time left, estimated from weights done."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), quiet=quiet
        )

    def __call__(self, layer: Layer | None, done: int, total: int) -> None:
        # Names of layers differ at their end; 44 columns leave room for the bar in a line of 80.
        self.show(layer.name[-44:] if layer else "writing the report", done, total)


def show(console: Terminal, analysis: Analysis) -> None:
    """Print the layers of lowest and highest alpha, the summary, and failures."""
    heaviest, lightest = extremes(analysis.table)
    for title, rows in (
        ("Heaviest tails (lowest alpha)", heaviest),
        ("Lightest tails (highest alpha)", lightest),
    ):
        # Every layer may have failed or be too small.
        if not len(rows):
            continue
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for heading in ("layer", "shape", "alpha", "+-", "null"):
            table.add_column(
                heading, justify="left" if heading == "layer" else "right", overflow="fold"
            )
        for row in rows.to_dict("records"):
            numbers = (f"{row[key]:.3f}" for key in ("alpha", "alpha_se", "alpha_null"))
            table.add_row(visible(row["name"]), f"{row['rows']} x {row['cols']}", *numbers)
        console.print(table)
        console.print()
    console.print(storable(str(analysis.summary())), soft_wrap=True)
    # markup=False: names and reasons may contain square brackets, which rich would interpret.
    for layer in analysis.layers:
        if layer.status == "failed":
            console.print(f"failed: {visible(layer.name)}: {visible(layer.reason)}")
