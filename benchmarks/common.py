"""Times that can be compared: each side in its own process, called in turn.

Results are paired ratios. Each side lives in a fresh process, so that it has its own peak memory
and its own number of BLAS threads. A round asks every side once, in an order that is turned round
from round to round: a slow moment of the machine hits all sides.
"""

from __future__ import annotations

import os
import re
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

PAUSE = 0.1
"""Seconds between two sides: the threads of the last one stop spinning."""


class Job(Protocol):
    """The work of one side, its input at hand."""

    def run(self) -> Mapping[str, float]:
        """Do the work once; seconds by phase."""

    def facts(self) -> dict[str, Any]:
        """What came out (alphas, counts, what was extrapolated): asked once, not timed."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    ``build(*args)`` makes its Job in a fresh process with these environment variables.
    """

    build: Callable[..., Job]
    args: tuple[Any, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    warm_ups: int = 1


@dataclass(frozen=True)
class Outcome:
    """What one side took.

    Seconds by phase and round, what came out, memory in MB before and at the peak.
    """

    seconds: dict[str, list[float]]
    facts: dict[str, Any]
    megabytes: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the median of the rounds."""
        seconds = {
            phase: _digits(statistics.median(times)) for phase, times in self.seconds.items()
        }
        return {"seconds": seconds, "megabytes": self.megabytes} | self.facts


def run_sides(sides: Mapping[str, Side], rounds: int) -> dict[str, Outcome]:
    """Ask every side ``rounds`` times, in turn."""
    times: dict[str, list[Mapping[str, float]]] = {name: [] for name in sides}
    with ExitStack() as stack:
        pipes = {name: stack.enter_context(_started(side)) for name, side in sides.items()}
        for pipe in pipes.values():
            _answer(pipe)
        for i in range(rounds):
            for name in list(sides)[:: -1 if i % 2 else 1]:
                time.sleep(PAUSE)
                times[name].append(_ask(pipes[name], "run"))
        ends = {name: (_ask(pipes[name], "memory"), _ask(pipes[name], "facts")) for name in sides}
    return {
        name: Outcome(
            {phase: [round_[phase] for round_ in times[name]] for phase in times[name][0]},
            facts,
            memory,
        )
        for name, (memory, facts) in ends.items()
    }


def paired(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float | int]:
    """How many times longer ``slow`` took than ``fast``, round by round.

    Median, least and greatest ratio.
    """
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    middle = statistics.median(ratios)
    spread = {"least": _digits(min(ratios)), "most": _digits(max(ratios))}
    return {"median": _digits(middle), **spread, "rounds": len(ratios)}


@contextmanager
def clock(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the time spent inside to ``seconds[phase]``."""
    started = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - started


def steady(work: Callable[[], Any], least: float = 0.05) -> float:
    """Seconds per call of ``work``, which is called for at least ``least`` seconds in all.

    Short work is timed as well as long work.
    """
    calls, spent, started = 0, 0.0, time.perf_counter()
    while spent < least:
        work()
        calls, spent = calls + 1, time.perf_counter() - started
    return spent / calls


@dataclass(frozen=True)
class Run:
    """What a command took: seconds from start to end, memory in MB, what it printed."""

    seconds: float
    processor_seconds: float
    """Seconds on all processors together, in the program and in the kernel for it. Other programs
    on the machine hardly change them."""
    peak_megabytes: float
    peak_anonymous_megabytes: float
    """Without mapped files, sampled: a checkpoint that is mapped counts as
    resident while the kernel has room."""
    output: str


def run_command(
    command: Sequence[str], *, extra: Mapping[str, str] | None = None, every: float = 0.02
) -> Run:
    """Run a command as a fresh process and sample its memory.

    ``extra`` are environment variables. RuntimeError with the end of its output where it fails.
    """
    peak = anonymous = 0.0
    before = _children_seconds()
    with tempfile.TemporaryFile("w+") as printed:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(extra or {}),
            text=True,
        )
        while process.poll() is None:
            memory = memory_of(process.pid)
            peak = max(peak, memory.get("VmHWM", 0.0))
            anonymous = max(anonymous, memory.get("RssAnon", 0.0))
            time.sleep(every)
        seconds = time.perf_counter() - started
        printed.seek(0)
        output = printed.read()
    if process.returncode:
        raise RuntimeError(
            f"{Path(command[0]).name} ended with exit code {process.returncode}: ...{output[-600:]}"
        )
    spent = _children_seconds() - before
    return Run(seconds, spent, round(peak, 1), round(anonymous, 1), output)


def _children_seconds() -> float:
    """Processor seconds of all commands that this process has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def peak_megabytes() -> float:
    """Largest resident memory of this process so far, files that are mapped included."""
    return memory_of("self")["VmHWM"]


def memory_of(process: int | str) -> dict[str, float]:
    """Memory of a process in MB by the kernel's names.

    VmHWM is the peak, VmRSS what is used now, RssAnon the same without mapped files. Empty where
    the process is gone. ``getrusage`` will not do: its peak counts the parent from before the exec.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {
        key: int(kb) / 1024
        for key, kb in re.findall(r"^(VmHWM|VmRSS|RssAnon):\s+(\d+) kB", status, re.MULTILINE)
    }


def _serve(pipe: Connection, side: Side) -> None:
    """The life of a side's process: build, warm up, answer until told to end."""
    job = side.build(*side.args)
    before = peak_megabytes()
    for _ in range(side.warm_ups):
        job.run()
    pipe.send("ready")
    answers: dict[str, Callable[[], Any]] = {
        "run": job.run,
        "facts": job.facts,
        "memory": lambda: {"before": round(before, 1), "peak": round(peak_megabytes(), 1)},
    }
    while (question := pipe.recv()) in answers:
        pipe.send(answers[question]())


@contextmanager
def _started(side: Side) -> Iterator[Connection]:
    """A side's process, which answers once when it is ready to be asked; ends with the block."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, side), daemon=True)
    with patch.dict(os.environ, side.environment):
        process.start()
    there.close()
    try:
        yield here
        here.send("end")
    finally:
        here.close()
        process.join(10)
        process.terminate()


def _ask(pipe: Connection, question: str) -> Any:
    pipe.send(question)
    return _answer(pipe)


def _answer(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError(
            "a side of the benchmark failed; its own error is printed above"
        ) from None


def _digits(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")
