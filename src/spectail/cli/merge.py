"""The command ``spectail merge``: join the parts of a run that several processes measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from spectail.cli.analyze import values_of
from spectail.cli.options import Json, Quiet, console_for, print_json
from spectail.cli.runner import show
from spectail.measuring.journal import Journal
from spectail.measuring.shards import joined_parts

Folders: TypeAlias = Annotated[
    list[Path],
    typer.Argument(metavar="DIR...", help="The --out folder of the shards, or several of them."),
]
Out: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Folder for tables and report; the same folder if only one is given."),
]
Fresh: TypeAlias = Annotated[
    bool, typer.Option("--fresh", help="Replace another run in the folder.")
]


def merge(
    folders: Folders,
    out: Out = None,
    fresh: Fresh = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Join the parts of a run that analyze --shard measured into one table and report."""
    analysis, target = joined_parts(folders, out)
    console = console_for(json, quiet=quiet)
    with Journal.open(target, analysis.run, fresh=fresh) as journal:
        try:
            journal.finish(analysis)
        finally:  # a full disk must not cost the user the numbers
            show(console, analysis)
            if json:
                print_json(values_of(analysis))
    console.print(f"report: {target / 'report.html'}")
    return 1 if any(layer.status == "failed" for layer in analysis.layers) else 0
