"""Connect to a Ray cluster, and what its machines offer."""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectail.basics.texts import first_line
from spectail.errors import RunError, SpecError

CONNECT_SECONDS = 10.0
"""How long to wait for an answer at the address of a cluster."""
_ADDRESS = re.compile(r"(?:ray://)?(?P<host>[^/\[\]]+|\[[^/\]]+\]):(?P<port>\d{1,5})")
"""``host:port`` or ``ray://host:port``; an IPv6 address stands in brackets."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2 sends first: a fixed text and an empty SETTINGS frame (RFC 9113, 3.4)."""
_SETTINGS = 4
"""The type of the frame that a server of HTTP/2 must send first; it is the frame's fourth byte."""


@dataclass(frozen=True)
class Machine:
    """What a machine offers to tasks, whether or not some run there now."""

    cpus: int
    gpus: int
    memory: int
    """Bytes that Ray gives to tasks."""


@dataclass(frozen=True)
class Capacity:
    """The machines that can run tasks, by Ray's name of the node."""

    machines: Mapping[str, Machine]

    @classmethod
    def of(
        cls, nodes: Iterable[Mapping[str, Any]], *, gpu: bool, without: Iterable[str]
    ) -> Capacity:
        """Return the capacity of ``ray.nodes()``, without some; with ``gpu`` of those with one."""
        left_out = set(without)
        machines = {
            node["NodeID"]: Machine(
                *(int(node["Resources"].get(name, 0)) for name in ("CPU", "GPU", "memory"))
            )
            for node in nodes
            if node["Alive"] and node["NodeID"] not in left_out
        }
        # A task on a GPU needs a CPU too.
        return cls({k: m for k, m in machines.items() if m.cpus >= 1 and (m.gpus >= 1 or not gpu)})

    @property
    def cpus(self) -> int:
        """CPUs of all machines."""
        return sum(machine.cpus for machine in self.machines.values())

    @property
    def gpus(self) -> int:
        """GPUs of all machines."""
        return sum(machine.gpus for machine in self.machines.values())

    def nearest(self, cpus: int, memory: int) -> tuple[int, int]:
        """Return the CPUs and bytes to ask for, so that one machine has both.

        A machine with fewer CPUs takes longer, and one with less memory may not get through: memory
        comes first.
        """
        memory = min(memory, max((machine.memory for machine in self.machines.values()), default=0))
        most = (m.cpus for m in self.machines.values() if m.memory >= memory)
        return min(cpus, max(most, default=1)), memory

    def holds(self, cpus: int, memory: int) -> bool:
        """Return whether one machine has as many CPUs and as much memory as a task asks for."""
        return any(m.cpus >= cpus and m.memory >= memory for m in self.machines.values())


def import_ray() -> Any:
    """Import Ray, quietly; SpecError if it is not installed."""
    # Ray reads these once. The first hides what raylets print into the output of the driver when a
    # worker dies: the engine reports that itself. The second turns off reports of usage.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            import ray.exceptions
    except ImportError as error:
        raise SpecError(
            "the ray engine needs Ray: pip install 'spectail[ray]', or leave out --engine"
        ) from error
    return ray


def connect(ray: Any, address: str | None) -> None:
    """Connect to a cluster, or start one on this machine; RunError if it does not answer."""
    # Ray asks the variable and then the file, unless it is told an address.
    unsaid = address in (None, "auto")
    variable = os.environ.get("RAY_ADDRESS", "") if unsaid else ""
    place = variable or (_started_here() if unsaid else "") or address
    try:
        if place and (match := _ADDRESS.fullmatch(place)):
            try:
                _require_answer(match, CONNECT_SECONDS)
            except OSError:
                if address or variable:
                    raise
                address = "local"  # the cluster of this machine has died, so start another
        with warnings.catch_warnings(), _own_way_to_end():
            warnings.simplefilter("ignore")
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, RuntimeError, ValueError, AssertionError, ImportError) as error:
        where = f"no Ray cluster answers at {place}" if place else "Ray does not start here"
        leave = "unset RAY_ADDRESS" if variable else "leave out --ray-address"
        raise RunError(
            f"{where} ({first_line(error)}): start one with 'ray start --head' and give its "
            f"address, or {leave} to use this machine"
        ) from error


@contextmanager
def _own_way_to_end() -> Iterator[None]:
    """Restore what this process does on SIGTERM: Ray prints a stack and ends it with code 1."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)


def _started_here() -> str:
    """Return the address that ``ray start`` has noted on this machine; empty if there is none.

    The note outlives a cluster that was killed.
    """
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    with suppress(OSError, UnicodeDecodeError):
        return (Path(folder) / "ray" / "ray_current_cluster").read_text("utf-8").strip()
    return ""


def answers(address: str, seconds: float) -> bool:
    """Return whether a server of a cluster answers at ``host:port`` within so many seconds."""
    match = _ADDRESS.fullmatch(address)
    try:
        if match:
            _require_answer(match, seconds)
    except OSError:
        return False
    return match is not None


def _require_answer(address: re.Match[str], seconds: float) -> None:
    """Raise OSError unless a server of gRPC, which Ray speaks, answers within so many seconds.

    Ray itself tries for minutes and prints pages.
    """
    place = address["host"].strip("[]"), int(address["port"])
    with socket.create_connection(place, timeout=seconds) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return  # an encrypted server does not understand the question
        connection.sendall(_PREFACE)
        frame = connection.recv(9)
    if len(frame) < 4 or frame[3] != _SETTINGS:
        raise OSError("what listens there is not Ray; its port is 6379 unless chosen otherwise")


def require_connection(ray: Any, address: str | None) -> None:
    """Raise RunError if this process is connected to another cluster than ``address``."""
    connected = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", connected):
        raise RunError(
            f"this process is connected to the Ray cluster at {connected}, not {address}: call "
            "ray.shutdown() first, or leave out the address"
        )
