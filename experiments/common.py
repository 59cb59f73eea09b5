"""What every experiment shares.

The environment it ran in, results kept atomically, runs that go on after a kill.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from spectail.basics.files import write_text

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "experiments"
"""Where runs are kept until they are finished."""
PACKAGES = (
    "spectail",
    "torch",
    "numpy",
    "scipy",
    "safetensors",
    "gguf",
    "transformers",
    "neuraloperator",
)
_FLAT_LIST = re.compile(r"\[\s+([^\[\]{}]*?)\s+\]")


def environment() -> dict[str, Any]:
    """What a result may depend on: versions, system, processor, cores. No host names, no paths."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "system": platform.system(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
    }


def save_json(path: str | Path, data: Any) -> None:
    """Write ``data`` as JSON, whole or not at all.

    NaN and infinities become null; a list of plain values stays on one line.
    """
    path = Path(path)
    text = json.dumps(_plain(data), indent=1, allow_nan=False, ensure_ascii=False)
    text = _FLAT_LIST.sub(lambda match: "[" + re.sub(r",\n\s+", ", ", match[1]) + "]", text)
    write_text(path, text + "\n")


def on_device(device: str) -> dict[str, str]:
    """What a journal's settings say of the device: nothing for the CPU.

    Results of a GPU differ by rounding, so they never go on with a journal of the CPU.
    """
    return {} if device == "cpu" else {"device": device}


@dataclass
class Journal:
    """Steps of a run by key, each kept as one JSON line the moment it is done."""

    path: Path
    done: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any], *, fresh: bool = False) -> Journal:
        """Go on with the run at ``path``, or start one.

        ValueError where that run has other settings.
        """
        head = json.dumps({"settings": _plain(settings)})
        lines = [] if fresh or not path.exists() else _whole_lines(path)
        if lines and lines[0] != head:
            raise ValueError(
                f"{path} holds a run with other settings; go on with those, or start anew "
                f"with --fresh"
            )
        text = "\n".join(lines or [head]) + "\n"
        # A line that a kill cut is dropped by a file that replaces the old one as a whole: a kill
        # in the middle of this must not cost the steps that are done.
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
        return cls(path, dict(json.loads(line) for line in lines[1:]))

    def reload(self) -> None:
        """Take what another process has added."""
        self.done = steps_in(self.path)

    def add(self, key: str, value: Any) -> None:
        """Keep one step."""
        self.done[key] = value = _plain(value)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, value]) + "\n")


def steps_in(path: Path) -> dict[str, Any]:
    """Read the finished steps of a journal by key; a line that is still being written is left."""
    return dict(json.loads(line) for line in _whole_lines(path)[1:])


class Workers:
    """Processes that do steps of an experiment, each with an experiment of its own.

    ``build`` opens it; its ``journal`` is the one that the parent process writes. A step is
    ``functools.partial`` of a method of the experiment. With one worker the parent does everything.
    """

    def __init__(self, number: int, build: Callable[[], Any]) -> None:
        self.number, self._build = number, build
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def results(
        self, steps: Mapping[str, Callable[[], Any]], seconds: float | None = None
    ) -> Iterator[tuple[str, Any]]:
        """Every step's key and result, in the order in which they are done.

        No step begins after ``seconds``; those that have begun are finished.
        """
        if self._pool is None:
            # CUDA does not work in a forked process.
            self._pool = ProcessPoolExecutor(
                self.number, get_context("spawn"), _begin_worker, (self._build,)
            )
        started, waiting = time.perf_counter(), deque(steps.items())
        running: dict[Future[Any], str] = {}
        while True:
            late = seconds is not None and time.perf_counter() - started >= seconds
            while waiting and len(running) < self.number and not late:
                key, step = waiting.popleft()
                if not isinstance(step, partial):
                    raise TypeError(f"step {key}: expected a partial of a method, not {step!r}")
                running[self._pool.submit(_do, step.func.__name__, step.args)] = key
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()


_experiment: Any = None
"""In a worker process: its experiment."""


def _begin_worker(build: Callable[[], Any]) -> None:
    global _experiment
    _experiment = build()


def _do(method: str, arguments: tuple[Any, ...]) -> Any:
    _experiment.journal.reload()
    return getattr(_experiment, method)(*arguments)


def run_steps(
    journal: Journal,
    steps: Iterable[tuple[str, Callable[[], Any]]],
    *,
    seconds: float | None = None,
    workers: Workers | None = None,
) -> bool:
    """Do the steps that the journal lacks, with a line of progress each.

    False where ``seconds`` ran out before.
    """
    steps = list(steps)
    if workers is not None and workers.number > 1:
        left = {key: step for key, step in steps if key not in journal.done}
        for key, value in workers.results(left, seconds):
            journal.add(key, value)
            print(
                f"[{sum(key in journal.done for key, _ in steps)}/{len(steps)}] {key}", flush=True
            )
        return all(key in journal.done for key, _ in steps)
    started = time.perf_counter()
    for i, (key, step) in enumerate(steps, 1):
        if key in journal.done:
            continue
        if seconds is not None and time.perf_counter() - started > seconds:
            print(
                f"stopped after {seconds:g} s with {i - 1} of {len(steps)} steps done; run "
                f"again to go on"
            )
            return False
        begun = time.perf_counter()
        journal.add(key, step())
        print(f"[{i}/{len(steps)}] {key}: {time.perf_counter() - begun:.1f} s", flush=True)
    return True


def run_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None, name: str
) -> argparse.Namespace:
    """Options of an experiment that has a small grid and a ``--full`` one.

    They also say where each kind of run is kept. Adds ``work`` (the journal), ``out`` (results),
    ``image`` and ``page`` (None: no page is filled) to what was given.
    """
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--seconds", type=float, help="stop after so long; the same command goes on (exit code 3)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget what an earlier run has measured"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a toy, seconds; the docs stay as they are"
    )
    parser.add_argument("--out", type=Path, help="folder of the results; the docs stay as they are")
    options = parser.parse_args(arguments)
    grid = "full" if options.full else ""
    elsewhere = (options.out or WORK) / "quick" if options.quick else options.out
    options.work = elsewhere or WORK / grid
    options.page = None if elsewhere or grid else ROOT / "docs" / f"{name}-results.md"
    options.image = (elsewhere or ROOT / "docs" / "images") / f"{name}{grid and '-' + grid}.png"
    options.out = elsewhere or ROOT / "experiments" / name / grid
    return options


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table: the first column to the left, the others to the right."""
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)], *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fill_page(page: Path, parts: Mapping[str, str]) -> None:
    """Put each text between ``<!-- NAME -->`` and ``<!-- /NAME -->`` of a page.

    ValueError where a mark is missing.
    """
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        marks = re.compile(
            rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.DOTALL
        )
        if not marks.search(text):
            raise ValueError(
                f"{page.name} has no place for {name!r}: expected <!-- {name} --> and <!-- "
                f"/{name} -->"
            )
        text = marks.sub(partial(_between, part), text)
    write_text(page, text)


def publish(
    options: argparse.Namespace, results: Mapping[str, Any], parts: Mapping[str, str]
) -> None:
    """Write ``results`` with their environment, fill the page with the tables and print them."""
    save_json(options.out / "results.json", {"environment": environment(), **results})
    if options.page:
        fill_page(options.page, parts)
    print("\n\n".join(parts.values()))


def mean_and_spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Mean and standard deviation as a table shows them.

    Only the mean of one value, or of runs of which one diverged.
    """
    spread = (
        f" ± {stdev(values):.{digits}f}"
        if len(values) > 1 and not any(map(math.isnan, values))
        else ""
    )
    return f"{fmean(values):{sign}.{digits}f}{spread}"


def _between(part: str, marks: re.Match[str]) -> str:
    return f"{marks[1]}\n{part}\n\n{marks[2]}"


def _whole_lines(path: Path) -> list[str]:
    """The lines that were written to their end: a kill may cut the last."""
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def _processor() -> str:
    """The processor's model name as the kernel gives it."""
    path = Path("/proc/cpuinfo")
    found = (
        re.search(r"^model name\s*:\s*(.+)$", path.read_text(), re.MULTILINE)
        if path.exists()
        else None
    )
    return found[1] if found else platform.processor()


def _plain(data: Any) -> Any:
    """JSON values only; keys as text."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    return data
