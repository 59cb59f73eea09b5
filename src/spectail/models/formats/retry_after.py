"""How long a server that is asked too often wants to be left alone: its header ``Retry-After``."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

TIMES = 3
"""How often a request is repeated after such a wait."""
LONGEST = 300.0
"""Seconds. A server that asks for more is given up, as one that does not say how long."""
_LOG = logging.getLogger(__name__)


def asked_wait(header: str | None) -> float:
    """Return the seconds that a header asks to wait, 0 if it asks for none or for too many.

    >>> asked_wait("20"), asked_wait("soon"), asked_wait(None)
    (20.0, 0.0, 0.0)
    """
    text = (header or "").strip()
    if text.isdecimal():
        wait = float(text[:9])
    else:
        try:
            date = parsedate_to_datetime(text)
        except (TypeError, ValueError):
            return 0.0
        # A date without an offset means the time of Greenwich (RFC 9110, section 5.6.7).
        wait = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return wait if 0 < wait <= LONGEST else 0.0


def wait_as_asked(seconds: float, shown: str) -> None:
    """Wait as long as a server asks, and tell the user.

    Args:
        seconds: How long.
        shown: The address for the message, without secrets.

    """
    _LOG.warning("%s asks to wait for %.0f seconds before the next request", shown, seconds)
    time.sleep(seconds)
