"""The console that commands print on: it shows texts from files whole and harmless."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from spectail.basics.texts import visible
from spectail.cli.streams import end_of_pipe


class Terminal(Console):
    """A console that takes no text for markup and shows control characters escaped.

    Names of layers and reasons come from files, which may hold anything: ``[/nope]``, sequences
    that move the cursor or set the window's title, marks that turn the direction of writing.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn a text, or a cell of a table, into what is shown; lines stay lines."""
        return super().render_str("\n".join(map(visible, text.split("\n"))), **options)

    def on_broken_pipe(self) -> None:
        """End the command because nobody reads its output any more."""
        self.quiet = True
        end_of_pipe(self.file)
