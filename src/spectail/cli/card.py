"""The command ``spectail card``: a run as a block of Markdown for a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spectail.analysis import Analysis
from spectail.basics.files import refuse_foreign, write_text
from spectail.cli.options import Quiet
from spectail.cli.streams import write_out
from spectail.cli.terminal import Terminal
from spectail.errors import RunError
from spectail.report.card import MARK
from spectail.report.card import card as card_text


def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an analysis.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default it is printed.")
    ] = None,
    quiet: Quiet = False,
) -> int:
    """Write a run as a block of Markdown for a model card."""
    text = card_text(Analysis.load(folder))
    if out is None:
        write_out(text)
        return 0
    refuse_foreign(out, MARK.encode(), RunError)
    write_text(out, text)
    Terminal(quiet=quiet).print(f"card: {out}", soft_wrap=True)
    return 0
