"""The command ``spectail describe``: what a model holds and what ``analyze`` would measure."""

from __future__ import annotations

from typing import Annotated

import typer

from spectail.cli.analyze import (
    AspectRatio,
    Base,
    FullSpectrum,
    Include,
    PlacementText,
    Preset,
    Source,
    Tolerance,
    WindowSize,
    spec_of,
)
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
from spectail.core.cutoffs import cutoff_forms
from spectail.measuring.describe import describe as describe_source
from spectail.results.table import storable


def describe(
    source: Source,
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
    include: Include = None,
    exclude: Exclude = None,
    kind: Kind = None,
    type: Type = None,
    full_spectrum: FullSpectrum = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """List the layers of a model and what analyze would do; nothing is measured."""
    options = {"window": window, "placement": placement, "cutoff": cutoff, "tolerance": tolerance}
    with only_json(json):
        description = describe_source(
            source,
            spec=spec_of(preset, aspect_ratio=aspect_ratio, **options),
            base=base,
            include=include or (),
            exclude=exclude or (),
            kinds=kind or (),
            types=type or (),
            full_spectrum=full_spectrum,
        )
    if json:
        print_json(description.to_dict())
    else:
        console = console_for(json, quiet=quiet)
        console.print(storable(str(description)), highlight=False, markup=False)
    return 0
