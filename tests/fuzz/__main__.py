"""Run the fuzzers: ``python -m tests.fuzz [--count N] [--seconds S] [--target NAME]...``.

Each target goes on where its last run stopped (``build/fuzz/NAME.json``). Findings are appended to
``build/fuzz/findings.jsonl``; ``--show TARGET NUMBER`` repeats one with its traceback.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import watch
from .targets import TARGETS, Target

FOLDER = Path("build") / "fuzz"
AT_ONCE = 5000
"""Inputs per process."""
SILENCE = 120
"""Seconds after which a process that reports nothing is ended."""


def batch(target: Target, start: int, stop: int) -> list[dict[str, Any]]:
    """Run inputs ``start`` to ``stop`` in processes that are replaced if they die."""
    found: list[dict[str, Any]] = []
    while start < stop:
        here, there = multiprocessing.Pipe()
        worker = multiprocessing.get_context("fork").Process(
            target=watch.work, args=(target, range(start, stop), there)
        )
        worker.start()
        there.close()
        last, ended = start, False
        try:
            while here.poll(SILENCE):
                message = here.recv()
                if message is None:
                    ended = True
                    break
                if isinstance(message, dict):
                    found.append(message)
                else:
                    last = message
        except EOFError:
            pass
        if not ended:
            worker.kill()
        worker.join()
        if not ended:
            kind = "hang" if worker.exitcode in {-27, -9} else "crash"
            found.append(
                {"target": target.name, "number": last, "kind": kind, "text": str(worker.exitcode),
                 "where": ""}
            )  # fmt: skip
        start = last + 1
    return found


def fuzz(target: Target, count: int, until: float) -> None:
    """Run a target up to its ``count``-th input."""
    state = FOLDER / f"{target.name.replace(' ', '-')}.json"
    done = json.loads(state.read_text())["done"] if state.exists() else 0
    findings = 0
    target.case(0)  # the seeds are made once, before the processes that share them
    while done < count and time.monotonic() < until:
        stop = min(done + AT_ONCE, count)
        found = batch(target, done, stop)
        with (FOLDER / "findings.jsonl").open("a") as file:
            file.writelines(json.dumps(finding) + "\n" for finding in found)
        done, findings = stop, findings + len(found)
        state.write_text(json.dumps({"done": done}))
        print(f"{target.name}: {done:,} inputs, {findings} findings in this run", flush=True)


def show(target: Target, number: int) -> None:
    """Run one input in this process and let its error pass."""
    with TemporaryDirectory() as name:
        files, entry = target.case(number)
        watch.write(Path(name), files)
        for file, content in files.items():
            print(file, len(content), content[:300])
        target.run(Path(name) / entry)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--show", nargs=2, metavar=("TARGET", "NUMBER"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.show:
        show(TARGETS[given.show[0]], int(given.show[1]))
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + given.seconds
    for name in given.target or TARGETS:
        fuzz(TARGETS[name], given.count, until)


if __name__ == "__main__":
    main()
