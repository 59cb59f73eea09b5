"""A progress bar on standard error that disappears when it is done."""

from __future__ import annotations

from typing import Self

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

from spectail.basics.texts import visible
from spectail.cli.terminal import Terminal


class Bar:
    """A progress bar with the current step, per cent and further columns; hidden with ``quiet``."""

    def __init__(self, *columns: ProgressColumn, quiet: bool) -> None:
        shown = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            *columns,
        )
        # Older versions of rich end a disabled bar with an empty line: hence a quiet console too.
        console = Terminal(stderr=True, quiet=quiet)
        self.progress = Progress(*shown, console=console, disable=quiet, transient=True)
        self.task = self.progress.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.progress.stop()

    def show(self, what: str, done: int, total: int | None) -> None:
        """Show ``what`` and ``done`` of ``total``; ``total=None`` if it is unknown."""
        self.progress.update(self.task, description=visible(what), completed=done, total=total)
