"""The progress bar that ``analyze`` shows in a notebook. It needs no widgets."""

from __future__ import annotations

import html
import time
from typing import Any

from spectail.basics.notebook import kernel
from spectail.basics.texts import visible
from spectail.models.source import Layer

_INTERVAL = 0.1
"""Seconds between two updates: every update is a message to the browser."""


class NotebookBar:
    """A progress callback that draws a bar below the cell and empties it at the end."""

    def __init__(self) -> None:
        self._shown: Any = None
        self._last = 0.0

    def __call__(self, layer: Layer | None, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` weights are measured, and that ``layer`` is next."""
        if layer is None:
            self._draw("", "")
        elif time.monotonic() - self._last >= _INTERVAL:
            name, share = visible(layer.name), done / max(total, 1)
            self._draw(
                f"measuring: {share:.0%}, {name}",
                f'<progress value="{share:.4f}" max="1" style="width: 40%"></progress> '
                f"{share:.0%} <code>{html.escape(name)}</code>",
            )
            self._last = time.monotonic()

    def _draw(self, text: str, marked: str) -> None:
        bundle = {"text/plain": text, "text/html": marked}
        if self._shown is not None:
            self._shown.update(bundle, raw=True)
        elif text:
            from IPython.display import display  # the kernel has loaded it

            show: Any = display  # IPython has no annotations
            self._shown = show(bundle, raw=True, display_id=True)


def notebook_bar() -> NotebookBar | None:
    """Return a bar in a notebook, and None elsewhere."""
    return None if kernel() is None else NotebookBar()
