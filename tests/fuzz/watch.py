"""Run inputs in a process that is watched: time, memory, code that runs, files that are touched."""

from __future__ import annotations

import importlib.metadata
import os
import resource
import signal
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from spectail.errors import SpectailError

SECONDS = 5
"""Processor seconds that one input may take."""
EXTRA = 256 * 2**20
"""Bytes of memory that one input may take beside its own size."""
_FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect",
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.symlink", "os.link",
)  # fmt: skip
"""Audit events that reading a file never needs outside of its own folder."""


@dataclass(frozen=True)
class Finding:
    """An input on which spectail does not do what it should."""

    target: str
    number: int
    kind: str
    """foreign, hang, memory, crash, outside or message."""
    text: str
    where: str = ""


class Watch:
    """Notes what happens outside of one folder while an input is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.on, self.seen, self.peak = False, "", 0
        trusted = {sys.prefix, sys.base_prefix, sysconfig.get_paths()["stdlib"]}
        root = str(Path(__file__).parents[2])
        self.trusted = (*trusted, root, "/proc/", "/sys/", "/dev/", "/usr/", "/etc/localtime")
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path = arguments[0]
            if isinstance(path, str | bytes) and not self._is_inside(os.fsdecode(path)):
                self.seen = f"open {os.fsdecode(path)[:200]}"
        elif event.startswith(_FORBIDDEN):
            paths = [os.fsdecode(a) for a in arguments if isinstance(a, str | bytes)]
            if not paths or not all(map(self._is_inside, paths)):
                self.seen = f"{event} {paths}"

    def _is_inside(self, path: str) -> bool:
        full = os.path.abspath(path)
        return full.startswith((self.folder, *self.trusted))


def write(folder: Path, files: dict[str, bytes]) -> int:
    """Write the files of an input, with an old date; returns their size."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        # A file that was just written is waited for; see OpenFile.
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return sum(map(len, files.values()))


def age(folder: Path) -> int:
    """Give all files of a folder an old date; returns their size."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return sum(path.stat().st_size for path in files)


def _at_once(fd: Any) -> None:
    """Stand in for ``os.fsync``."""


def limit() -> None:
    """Limit the address space of this process, and let it end when its time is used up."""
    warnings.simplefilter("ignore")
    # Half of the time of an input would go into reading versions and waiting for the disk.
    importlib.metadata.version = cache(importlib.metadata.version)
    os.fsync = _at_once
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    most = _virtual_memory() + 4 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run_case(target: Any, number: int, seed: int, folder: Path, watch: Watch) -> Finding | None:
    """Run one input in this process; None if all went as it should."""
    try:
        files, entry = target.case(number, seed)
        size = write(folder, files)
    except Exception as error:  # noqa: BLE001 - a fault of the fuzzer's own is to be seen too
        return Finding(target.name, number, "fuzzer", repr(error)[:300], _place(error))
    found = observe(lambda: target.run(folder / entry), size, watch)
    return Finding(target.name, number, *found) if found else None


def observe(read: Callable[[], object], size: int, watch: Watch) -> tuple[str, str, str] | None:
    """Call a reader of ``size`` bytes; returns what kind of fault it has, its text and place."""
    before = watch.peak or _peak()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    watch.on, watch.seen = True, ""
    found: tuple[str, str, str] | None = None
    try:
        read()
    except SpectailError as error:
        text = str(error)
        if not text or "MemoryError" in text or "t allocate" in text:
            found = ("message", text[:300], _place(error))
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        found = ("foreign", f"{type(error).__name__}: {error}"[:300], _place(error))
    finally:
        watch.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
    # Asking takes milliseconds, so the peak after one input is the one before the next.
    watch.peak = _peak()
    grown = watch.peak - before
    if grown > size + EXTRA:
        found = ("memory", f"{grown / 2**20:.0f} MiB for {size} bytes", "")
    if watch.seen:
        found = ("outside", watch.seen, "")
    return found


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _place(error: BaseException) -> str:
    """The innermost line of spectail's that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/src/spectail/" in f.filename] or frames
    return f"{own[-1].filename.rpartition('/src/')[2]}:{own[-1].lineno}"


def work(target: Any, numbers: Iterable[int], seed: int, channel: Connection) -> None:
    """Run inputs and report each; called in a process of its own."""
    limit()
    with TemporaryDirectory(prefix="fuzz") as name:
        watch = Watch(Path(name))
        folder = Path(name) / "case"
        for number in numbers:
            channel.send(number)
            _empty(folder)
            finding = run_case(target, number, seed, folder, watch)
            if finding:
                channel.send(asdict(finding))
            if finding and finding.kind == "memory":
                break  # the peak is known only once per process
    channel.send(None)


def _virtual_memory() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _empty(folder: Path) -> None:
    """Make the folder of a case anew."""
    if folder.exists():
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    else:
        folder.mkdir(parents=True)
