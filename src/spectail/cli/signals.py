"""Signals that ask the process to end: it tidies up as after Ctrl-C."""

from __future__ import annotations

import _thread
import os
import signal
import time
from contextlib import suppress
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C, as a shell reports it."""
_NAMES = ("SIGTERM", "SIGHUP", "SIGXCPU")
"""What batch systems, containers and closed terminals send."""
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_SOON = 0.01
"""Seconds after which a signal that came at a bad moment is sent again."""


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
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            with suppress(ValueError):
                signal.signal(signal.SIGINT, _interrupt)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Stop the command; a second signal ends the process at once."""
        if _is_postponed(number, frame):
            return
        self.code = 128 + number
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Stop the command after Ctrl-C."""
    if not _is_postponed(number, frame):
        raise KeyboardInterrupt


def _is_postponed(number: int, frame: FrameType | None) -> bool:
    """Send a signal again soon if it came within Python's import system; returns whether it did.

    An exception there may leave a lock of the import system taken, for which a thread that imports
    waits for ever.
    """
    if frame is None or frame.f_code.co_filename != _IMPORT_SYSTEM:
        return False
    # A Thread takes locks of its own, and the code that the signal has met may hold them.
    _thread.start_new_thread(_send_again, (number,))
    return True


def _send_again(number: int) -> None:
    time.sleep(_SOON)
    os.kill(os.getpid(), number)
