"""How much memory there is, so that what cannot fit is refused before it is tried."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where Linux says how much memory a container may use."""


@cache
def memory_size() -> float:
    """Return the bytes of memory of this machine or container; infinite if that is not known."""
    found = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    for path in map(Path, _LIMITS):
        try:
            found.append(float(path.read_text()))
        except (OSError, ValueError):  # no Linux, or no limit
            continue
    return min(found, default=math.inf)


def too_large(shape: Sequence[int], itemsize: int) -> str | None:
    """Say that an array does not fit into memory, or return None if it does."""
    size = math.prod(shape) * itemsize
    if size <= memory_size():
        return None
    return f"it takes {in_words(size)} to compute, and this machine has {in_words(memory_size())}"


def in_words(size: float) -> str:
    """Write a number of bytes with three digits.

    >>> in_words(80_000_000_000), in_words(512)
    ('80 GB', '512 B')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} PB"
