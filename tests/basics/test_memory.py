"""How much memory a container may use, from files as Linux writes them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from spectail.basics import memory
from spectail.basics.memory import cgroup_limit, memory_size, too_large

GIB = 2**30
NO_LIMIT_V1 = "9223372036854771712\n"
"""What version 1 writes for no limit: the largest number of pages."""
V1 = "12:cpu,cpuacct:{0}\n4:memory:{0}\n1:name=systemd:{0}\n0::{0}\n"
V2 = "0::{0}\n"

CASES: dict[str, tuple[dict[str, str], float]] = {
    "version 2, in a container with its own root": (
        {"proc/self/cgroup": V2.format("/"), "sys/fs/cgroup/memory.max": f"{2 * GIB}\n"},
        2 * GIB,
    ),
    "version 2, a scope of systemd": (
        {
            "proc/self/cgroup": V2.format("/user.slice/run-1.scope"),
            "sys/fs/cgroup/user.slice/run-1.scope/memory.max": f"{3 * GIB}\n",
            "sys/fs/cgroup/user.slice/memory.max": "max\n",
        },
        3 * GIB,
    ),
    "version 2, a group above with a lower limit": (
        {
            "proc/self/cgroup": V2.format("/pod/container"),
            "sys/fs/cgroup/pod/container/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/pod/memory.max": f"{5 * GIB}\n",
        },
        5 * GIB,
    ),
    "version 2, no limit": (
        {"proc/self/cgroup": V2.format("/a"), "sys/fs/cgroup/a/memory.max": "max\n"},
        math.inf,
    ),
    "version 1, in a container that sees the host's names": (
        {
            "proc/self/cgroup": V1.format("/docker/0123"),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        },
        2 * GIB,
    ),
    "version 1, a group of the host": (
        {
            "proc/self/cgroup": V1.format("/jobs/7"),
            "sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory/jobs/memory.limit_in_bytes": NO_LIMIT_V1,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT_V1,
        },
        4 * GIB,
    ),
    "version 1 with version 2 beside it": (
        {
            "proc/self/cgroup": V1.format("/jobs/7"),
            "sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes": NO_LIMIT_V1,
            "sys/fs/cgroup/unified/jobs/7/memory.max": f"{GIB}\n",
        },
        GIB,
    ),
    "a group outside of what the container sees": (
        {"proc/self/cgroup": V2.format("/../../b"), "sys/fs/cgroup/memory.max": f"{GIB}\n"},
        GIB,
    ),
    "no Linux": ({}, math.inf),
    "damaged": ({"proc/self/cgroup": "nonsense\n\n::", "sys/fs/cgroup/memory.max": "x"}, math.inf),
}


@pytest.mark.parametrize("case", CASES)
def test_the_lowest_limit_of_all_groups_counts(case: str, tmp_path: Path) -> None:
    files, expected = CASES[case]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    found = cgroup_limit(tmp_path)
    assert found == expected or (math.isinf(expected) and found >= float(NO_LIMIT_V1))


def test_an_array_larger_than_the_container_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "sys" / "fs" / "cgroup").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    (tmp_path / "sys" / "fs" / "cgroup" / "memory.max").write_text(f"{2**20}\n")
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    memory_size.cache_clear()
    try:
        assert memory_size() == 2**20
        assert too_large((256, 1024), 4) is None
        assert too_large((257, 1024), 4) == (
            "it takes 1.05 MB to compute, and this machine has 1.05 MB"
        )
    finally:
        memory_size.cache_clear()


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="only where the system says its memory")
def test_this_machine_has_no_more_than_its_memory() -> None:
    assert 0 < memory_size() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
