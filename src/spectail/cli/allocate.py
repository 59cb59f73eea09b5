"""The command ``spectail allocate``: write a file with one value per layer of an analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console

from spectail import presets
from spectail.allocation.allocate import allocate as make_allocation
from spectail.allocation.targets import as_target, target_names
from spectail.allocation.units import FALLBACKS
from spectail.analysis import Analysis
from spectail.cli.options import Exclude, Quiet, read_settings
from spectail.errors import AllocationError
from spectail.results.table import storable

_MAPS = (
    "linear:EPS, linear:LOW:HIGH, sqrt, log2, step:LOW:HIGH, sigmoid:SCALE, or "
    f"{', '.join(presets.MAPS)}."
)

Folder: TypeAlias = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an analysis.")]
Budget: TypeAlias = Annotated[
    float, typer.Option(help="Mean sparsity or bits over all weights, or the base rate.")
]
Out: TypeAlias = Annotated[Path, typer.Option(help="The file to write, as JSON.")]
Map: TypeAlias = Annotated[str | None, typer.Option(help=_MAPS)]
Level: TypeAlias = Annotated[str | None, typer.Option(help="One value per layer or per block.")]
ByKind: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--standardize-by-kind", help="For sparsity: compare alphas within a kind of layer only."
    ),
]
Include: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="Also give a value to layers whose name matches this glob."),
]
Missing: TypeAlias = Annotated[
    str, typer.Option(help=f"For layers without an alpha: {', '.join(FALLBACKS)}.")
]
Bounds: TypeAlias = Annotated[
    str | None, typer.Option(help="Least and greatest sparsity of a layer, as LOW:HIGH.")
]
Choices: TypeAlias = Annotated[
    str | None, typer.Option(help="Bit widths to choose from, as 2,3,4,8.")
]
Gamma: TypeAlias = Annotated[
    float | None, typer.Option(help="How strongly alpha influences the bits.")
]
Normalize: TypeAlias = Annotated[
    bool, typer.Option("--normalize", help="Keep the mean rate at the base rate.")
]

Option: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="Another setting of the target, as NAME=VALUE; can be given several times."),
]
_FLAGS = ("map", "level", "standardize_by_kind", "bounds", "choices", "gamma", "normalize")
"""Settings of a target that have an option of their own."""


def allocate(
    folder: Folder,
    # Written out here, the help is made when the command runs: it names targets added at run time.
    target: Annotated[str, typer.Option(help=f"{', '.join(target_names())}.")],
    budget: Budget,
    out: Out,
    map: Map = None,
    level: Level = None,
    standardize_by_kind: ByKind = False,
    include: Include = None,
    exclude: Exclude = None,
    missing: Missing = "error",
    bounds: Bounds = None,
    choices: Choices = None,
    gamma: Gamma = None,
    normalize: Normalize = False,
    option: Option = None,
    quiet: Quiet = False,
) -> int:
    """Share out a budget among the layers of an analysed model, by their alphas."""
    rule = as_target(
        target,
        map=map,
        level=level,
        standardize_by_kind=standardize_by_kind or None,
        bounds=_numbers("bounds", bounds, ":", float),
        choices=_numbers("choices", choices, ",", int),
        gamma=gamma,
        normalize=normalize or None,
        **read_settings(option, AllocationError, known=_FLAGS),
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
    """Parse the numbers in an option's text."""
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
