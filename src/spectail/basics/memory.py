"""How much memory there is, so that what cannot fit is refused before it is tried."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_VERSION_2 = (("sys/fs/cgroup", "memory.max"), ("sys/fs/cgroup/unified", "memory.max"))
_VERSION_1 = (("sys/fs/cgroup/memory", "memory.limit_in_bytes"),)
"""Where Linux says how much memory a group of processes may use, for both versions of cgroups."""


@cache
def memory_size() -> float:
    """Return the bytes of memory of this machine or container; infinite if that is not known."""
    physical = math.inf
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        physical = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(physical, cgroup_limit(_ROOT))


def cgroup_limit(root: Path) -> float:
    """Return the bytes that this process's control groups allow it; infinite without a limit.

    A limit holds for all groups below, so the lowest one counts. Containers may see the names of
    the host, with their own group as the topmost one; so the topmost one is always asked.

    Args:
        root: The root of the file system.

    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return math.inf
    limits = [math.inf]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        mounts: tuple[tuple[str, str], ...] = ()
        # Version 2 has one group for all controllers, and names none.
        if not controllers:
            mounts = _VERSION_2
        elif "memory" in controllers.split(","):
            mounts = _VERSION_1
        own = PurePosixPath(group.lstrip("/"))
        for mount, name in mounts:
            # The last of the parents is the topmost group.
            for folder in (own, *own.parents):
                limits.append(_number(root / mount / folder / name))
    return min(limits)


def _number(path: Path) -> float:
    """Return the limit in a file; infinite if there is none."""
    try:
        return float(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return math.inf


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
