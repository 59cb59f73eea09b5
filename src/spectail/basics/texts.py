"""Lists of names in messages, where only the first of many are shown."""

from __future__ import annotations

from collections.abc import Iterable


def first_names(names: Iterable[str], most: int = 1) -> str:
    """List the first ``most`` names and count the rest.

    >>> first_names(["q", "k", "v"], 2)
    'q, k and 1 more'
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
