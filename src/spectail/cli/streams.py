"""Standard output and standard error that cannot be written: a closed pipe, or a full disk."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import IO, Any

PIPE_CLOSED = 141
"""The exit code when the reader of an output has gone (``| head``): 128 + SIGPIPE, as of a program
that the signal ends. Code 1 would say that the command has finished."""


def write_out(text: str) -> None:
    """Write text to standard output, if there is one, and hand it to the operating system.

    Raises:
        OSError: It cannot be written. Without the flush Python would notice that at its exit only.
        SystemExit: Nobody reads it any more.

    """
    if sys.stdout is None:  # a shell's ``>&-``
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        end_of_pipe(sys.stdout)


def end_of_pipe(stream: IO[Any]) -> None:
    """End the command because nobody reads a stream any more."""
    drop_unwritten(stream)
    raise SystemExit(PIPE_CLOSED)


def drop_unwritten(*streams: IO[Any] | None) -> None:
    """Forget what streams hold that cannot be written; Python would try it again at its exit."""
    for stream in streams:
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # ValueError: it was closed
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
                os.close(nowhere)


def show_any_character() -> None:
    """Let standard output write what its encoding lacks as escapes, as standard error does."""
    # Terminals and files of other encodings than UTF-8: PYTHONIOENCODING, and Windows.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
