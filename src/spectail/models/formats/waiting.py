"""How long servers may take: a try ends when no byte has come for a while, and there are two.

A server that is slow but sends bytes is never given up, however long an answer takes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

ANSWER = timedelta(seconds=30)
"""A try has failed when no byte has come for so long."""
CONNECT = timedelta(seconds=10)
"""A try has failed when there is no connection after so long."""
RETRY = timedelta(seconds=40)
"""A failed request is not repeated after so long. A server that is silent is asked twice."""
SAY = timedelta(seconds=10)
"""How long to wait for an answer before the user is told."""
_LOG = logging.getLogger(__name__)
_lock = threading.Lock()
_said: dict[str, float] = {}
"""When the user was last told that a place does not answer."""


def silence() -> str:
    """Say how long a server was silent when it is given up."""
    return f"{2 * ANSWER.total_seconds():.0f} seconds"


@contextmanager
def waiting_for(place: str, shown: str) -> Iterator[None]:
    """Tell the user that a server keeps the block waiting, once a minute for each place.

    Args:
        place: What is asked; it tells requests apart of which one message is enough.
        shown: The address for the message, without secrets.

    """
    timer = threading.Timer(SAY.total_seconds(), _say, (place, shown))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(place: str, shown: str) -> None:
    """Tell the user unless that was done for the same place a short time ago."""
    with _lock:
        now = time.monotonic()
        if now - _said.get(place, -1e9) < 2 * ANSWER.total_seconds():
            return
        _said[place] = now
    _LOG.warning("waiting for %s: no answer yet; given up after about %s", shown, silence())
