"""spectail allocate: from a folder of an analysis to one value per layer, as a file that other commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spectail import presets
from spectail.allocation.allocate import allocate as make_allocation
from spectail.allocation.targets import BY_NAME, as_target
from spectail.allocation.units import FALLBACKS
from spectail.analysis import Analysis
from spectail.errors import AllocationError
from spectail.results.table import storable

_MAPS = f"linear:EPS, linear:LOW:HIGH, sqrt, log2, step:LOW:HIGH, sigmoid:SCALE, or {', '.join(presets.MAPS)}."


def allocate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an analysis.")],
    target: Annotated[str, typer.Option(help=f"{', '.join(BY_NAME)}.")],
    budget: Annotated[
        float, typer.Option(help="Mean sparsity or bits over all weights, or the base rate.")
    ],
    out: Annotated[Path, typer.Option(help="The file to write, as JSON.")],
    map: Annotated[str | None, typer.Option(help=_MAPS)] = None,
    level: Annotated[str | None, typer.Option(help="One value per layer or per block.")] = None,
    standardize_by_kind: Annotated[
        bool,
        typer.Option(
            "--standardize-by-kind", help="For sparsity: alphas count within their kind of layer."
        ),
    ] = False,
    include: Annotated[
        list[str] | None, typer.Option(help="Also layers whose name matches this glob.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="No layers whose name matches this glob.")
    ] = None,
    missing: Annotated[
        str, typer.Option(help=f"For layers without an alpha: {', '.join(FALLBACKS)}.")
    ] = "error",
    bounds: Annotated[
        str | None, typer.Option(help="Least and most sparsity of a layer, as LOW:HIGH.")
    ] = None,
    choices: Annotated[
        str | None, typer.Option(help="Bit widths to choose from, as 2,3,4,8.")
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="How much alpha counts for bits.")] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Keep the mean rate at the base.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> int:
    """LayerValue out a budget among the layers of an analysed model, by their alphas."""
    rule = as_target(
        target,
        map=map,
        level=level,
        standardize_by_kind=standardize_by_kind or None,
        bounds=_numbers("bounds", bounds, ":", float),
        choices=_numbers("choices", choices, ",", int),
        gamma=gamma,
        normalize=normalize or None,
    )
    allocation = make_allocation(
        Analysis.load(folder),
        target=rule,
        budget=budget,
        include=include or (),
        exclude=exclude or (),
        missing=missing,
    )
    allocation.save(out)
    console = Console(quiet=quiet, soft_wrap=True)
    console.print(storable(allocation.summary()), highlight=False, markup=False)
    console.print(f"allocation: {out}", highlight=False, markup=False)
    return 0


def _numbers(
    option: str, text: str | None, separator: str, kind: type[float]
) -> tuple[float, ...] | None:
    """The numbers of an option's text."""
    if text is None:
        return None
    try:
        numbers = tuple(kind(word) for word in text.split(separator))
    except ValueError:
        numbers = ()
    if not numbers or (option == "bounds" and len(numbers) != 2):
        example = "0:0.9" if option == "bounds" else "2,3,4,8"
        raise AllocationError(f"--{option} must be numbers like {example}, not {text!r}")
    return numbers
