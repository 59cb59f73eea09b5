"""Signals that ask the process to end: it tidies up as after Ctrl-C."""

from __future__ import annotations

import signal
from contextlib import suppress
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C, as a shell reports it."""
_NAMES = ("SIGTERM", "SIGHUP", "SIGXCPU")
"""What batch systems, containers and closed terminals send."""


class Stops:
    """Handles the signals that ask the process to end as Ctrl-C, and remembers which came."""

    def __init__(self) -> None:
        self.code = INTERRUPTED
        """The exit code of a command that a signal has ended: 128 and the signal's number."""
        for name in _NAMES:
            number = getattr(signal, name, None)
            # nohup ignores SIGHUP. In another thread than the main one, handlers cannot be set.
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                with suppress(ValueError):
                    signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Stop the command; a second signal ends the process at once."""
        self.code = 128 + number
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt
