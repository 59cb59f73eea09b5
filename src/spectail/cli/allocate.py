"""The command ``spectail allocate``: write a file with one value per layer of an analysis."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from spectail import presets
from spectail.allocation.allocate import allocate as make_allocation
from spectail.allocation.sensitivities import Sensitivities
from spectail.allocation.targets import Freeze, as_target, target_names
from spectail.allocation.targets.freeze import RULES
from spectail.allocation.units import FALLBACKS
from spectail.analysis import Analysis
from spectail.cli.options import (
    Exclude,
    Json,
    Kind,
    Quiet,
    Type,
    console_for,
    print_json,
    read_settings,
)
from spectail.errors import AllocationError
from spectail.results.table import storable

_MAPS = (
    "How alphas become factors: linear:EPS, linear:LOW:HIGH, sqrt, log2, step:LOW:HIGH, "
    f"sigmoid:SCALE, or {', '.join(presets.MAPS)}."
)

Folder: TypeAlias = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an analysis.")]
Budget: TypeAlias = Annotated[
    float | None,
    typer.Option(
        help="Mean sparsity or bits over all weights, or the base value of a rate or decay."
    ),
]
Top: TypeAlias = Annotated[
    str | None, typer.Option(help="For freeze: the share of layers to train, as 25%.")
]
Out: TypeAlias = Annotated[
    Path | None, typer.Option(help="The file to write, as JSON. Needed without --json.")
]
Map: TypeAlias = Annotated[str | None, typer.Option(help=_MAPS)]
Level: TypeAlias = Annotated[str | None, typer.Option(help="layer or block: what gets one value.")]
ByKind: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--standardize-by-kind", help="For sparsity: compare alphas only within each kind of layer."
    ),
]
By: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="What sparsity goes by: alpha, variance, depth:FORM, or a sum such as alpha+variance; "
        "first+ or ends+ in front keeps the first block, or the first and the last. What freeze "
        f"goes by: {', '.join(RULES)}."
    ),
]
Include: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="Also give a value to layers whose name matches this glob."),
]
Missing: TypeAlias = Annotated[
    str, typer.Option(help=f"What to do with layers without an alpha: {', '.join(FALLBACKS)}.")
]
Bounds: TypeAlias = Annotated[
    str | None, typer.Option(help="Least and greatest sparsity of a layer, as LOW:HIGH.")
]
Choices: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Widths to choose from, as 2,3,4,8, or formats, as q4_k,q6_k."),
]
Gamma: TypeAlias = Annotated[
    float | None, typer.Option(help="How strongly alpha influences the bits; 0 by default.")
]
SensitivityFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="For bits: a file of spectail sensitivity, which weighs each layer's error."),
]
Normalize: TypeAlias = Annotated[
    bool, typer.Option("--normalize", help="Keep the mean rate at the base rate.")
]

Option: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="Another setting of the target, as NAME=VALUE; can be given several times."),
]
_FLAGS = (
    "map",
    "level",
    "standardize_by_kind",
    "by",
    "bounds",
    "choices",
    "gamma",
    "sensitivities",
    "normalize",
)
"""Settings of a target that have an option of their own."""


def allocate(
    folder: Folder,
    # Written out here, the help is made when the command runs: it names targets added at run time.
    target: Annotated[
        str, typer.Option(help=f"What to allocate: one of {', '.join(target_names())}.")
    ],
    out: Out = None,
    budget: Budget = None,
    top: Top = None,
    map: Map = None,
    level: Level = None,
    standardize_by_kind: ByKind = False,
    by: By = None,
    include: Include = None,
    exclude: Exclude = None,
    kind: Kind = None,
    type: Type = None,
    missing: Missing = "error",
    bounds: Bounds = None,
    choices: Choices = None,
    gamma: Gamma = None,
    sensitivities: SensitivityFile = None,
    normalize: Normalize = False,
    option: Option = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Share out a budget among the layers of an analysed model, by their alphas."""
    if out is None and not json:
        raise AllocationError("give --out FILE for the allocation, or --json to print it")
    rule = as_target(
        target,
        map=map,
        level=level,
        standardize_by_kind=standardize_by_kind or None,
        by=by,
        bounds=_bounds(bounds),
        choices=_choices(choices),
        gamma=gamma,
        sensitivities=None if sensitivities is None else Sensitivities.load(sensitivities),
        normalize=normalize or None,
        **read_settings(option, AllocationError, known=_FLAGS),
    )
    allocation = make_allocation(
        Analysis.load(folder),
        target=rule,
        budget=_budget(rule.name, budget, top),
        include=include or (),
        exclude=exclude or (),
        kinds=kind or (),
        types=type or (),
        missing=missing,
    )
    console = console_for(json, quiet=quiet)
    try:
        if out is not None:
            allocation.save(out)
    finally:  # a full disk must not cost the user the numbers
        console.print(storable(allocation.summary()), highlight=False, markup=False)
        if json:
            print_json(allocation.to_dict())
    if out is not None:
        console.print(f"allocation: {out}", highlight=False, markup=False)
    return 0


def _budget(target: str, budget: float | None, top: str | None) -> float:
    """Return the budget, which for freeze may be given as a share in percent."""
    if top is None:
        if budget is None:
            flag = "--top, as --top 25%" if target == Freeze.name else "--budget"
            raise AllocationError(f"target {target} needs {flag}")
        return budget
    if target != Freeze.name or budget is not None:
        raise AllocationError(
            f"--top is the share of layers that target {Freeze.name} trains: "
            f"give {'one of --top and --budget' if target == Freeze.name else '--budget instead'}"
        )
    number, percent = top.removesuffix("%"), top.endswith("%")
    try:
        return float(number) / (100 if percent else 1)
    except ValueError:
        raise AllocationError(f"--top must be a share like 25% or 0.25, not {top!r}") from None


def _bounds(text: str | None) -> tuple[float, ...] | None:
    """Parse a range, ``0:0.9``."""
    if text is None:
        return None
    try:
        numbers = tuple(float(word) for word in text.split(":"))
    except ValueError:
        numbers = ()
    if len(numbers) != 2:
        raise AllocationError(f"--bounds must be numbers like 0:0.9, not {text!r}")
    return numbers


def _choices(text: str | None) -> tuple[int, ...] | tuple[str, ...] | None:
    """Parse bit widths, ``2,3,4,8``, or names of formats, ``q4_k,q6_k``."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    # int() refuses thousands of digits with an error of its own.
    if all(word.isdecimal() and len(word) < 10 for word in words):
        return tuple(int(word) for word in words)
    # A format has a letter in its name; "2,x" and "2,3.5" are surely mistakes.
    if all(word[:1].isalpha() for word in words):
        return tuple(words)
    raise AllocationError(
        f"--choices must be widths like 2,3,4,8 or formats like q4_k,q6_k, not {text[:80]!r}"
    )
