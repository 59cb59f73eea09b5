"""The command ``spectail compare``: what changed between two analyses of one model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.table import Table

from spectail.analysis import Analysis
from spectail.basics.files import refuse_foreign, write_text
from spectail.basics.texts import first_names, plural, visible
from spectail.cli.options import Json, Quiet, console_for, print_json
from spectail.cli.terminal import Terminal
from spectail.errors import RunError
from spectail.report.compare_page import EYEBROW, compare_html
from spectail.report.page import page_mark
from spectail.results.compare import Comparison, pair_layers
from spectail.results.conditions import Condition

FailOn: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CONDITION",
        help="End with exit code 1 if it holds for a layer: z>4 (alpha rose by more than 4 "
        "combined errors), z<-4, |z|>4, change>0.1, alpha>6. May be given several times.",
    ),
]


def compare(
    a: Annotated[Path, typer.Argument(metavar="DIR_A", help="Folder of the first analysis.")],
    b: Annotated[Path, typer.Argument(metavar="DIR_B", help="Folder of the second analysis.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The page to write; by default compare.html in DIR_B, and none with --json."
        ),
    ] = None,
    fail_on: FailOn = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Pair the layers of two analyses by name, show what moved most, and write a page."""
    conditions = [Condition.of(text) for text in fail_on or ()]
    first, second = Analysis.load(a), Analysis.load(b)
    comparison = pair_layers(first, second)
    # B is the later run. Its analysis.json may be given in place of its folder.
    default = None if json else (b if b.is_dir() else b.parent) / "compare.html"
    page = out or default
    if page is not None:
        refuse_foreign(page, page_mark(EYEBROW), RunError)
    console = console_for(json, quiet=quiet)
    try:
        if page is not None:
            write_text(page, compare_html(comparison, first, second))
    finally:  # a full disk must not cost the user the numbers
        _show(console, comparison)
        if json:
            print_json(comparison.to_dict())
    if page is not None:
        console.print(f"page: {page}")
    held = [_fails(console, one, comparison) for one in conditions]  # all of them are printed
    return 1 if any(held) else 0


def _fails(console: Terminal, condition: Condition, comparison: Comparison) -> bool:
    """Print for which layers a condition holds; what can be decided for none fails too."""
    names, unknown = condition.holds(comparison), condition.unknown(comparison)
    found = f"{plural(len(names), 'layer')}: {first_names(names, 8)}" if names else "no layer"
    console.print(f"{condition.text} holds for {found}", soft_wrap=True)
    if unknown:
        why = "not measured or not comparable in both runs, without a partner or an error bar"
        why = "not measured in B" if condition.column == "alpha" else why
        console.print(
            f"note: {condition.text} cannot be decided for {plural(unknown, 'layer')}: {why}",
            soft_wrap=True,
        )
    return bool(names) or unknown == len(comparison.table)


def _show(console: Terminal, comparison: Comparison) -> None:
    """Print warnings and the layers that moved most."""
    for warning in comparison.warnings:
        console.print(f"note: {warning}")
    moved = comparison.moved(8).to_dict("records")
    table = Table(
        title="Moved most" if moved else "No layer moved",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for heading in ("layer", "alpha A", "alpha B", "change", "z"):
        table.add_column(
            heading, justify="left" if heading == "layer" else "right", overflow="fold"
        )
    for row in moved:
        # NaN is the only value that differs from itself: there is no z without error bars.
        z = f"{row['z']:+.1f}" if row["z"] == row["z"] else "-"
        numbers = f"{row['alpha_a']:.3f}", f"{row['alpha_b']:.3f}", f"{row['alpha_change']:+.3f}", z
        table.add_row(visible(row["name"]), *numbers)
    console.print(table)
