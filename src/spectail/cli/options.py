"""Options that several sub-commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Exclude: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="Leave out layers whose name matches this glob.")
]
Device: TypeAlias = Annotated[str, typer.Option(help="cpu, cuda...")]
