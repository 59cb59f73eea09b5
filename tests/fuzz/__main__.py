"""Run the fuzzers: ``python -m tests.fuzz [--count N] [--seconds S] [--target NAME]...``.

Each target goes on where its last run stopped (``build/fuzz/NAME.json``), with the same seed. A new
run takes its seed from the clock; another ``--seed`` starts anew. Findings are appended to
``build/fuzz/findings.jsonl``; ``--show TARGET NUMBER --seed SEED`` repeats one with its traceback.
``--attacks`` runs the files that were made on purpose. The exit code is 1 if there are findings.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from . import watch
from .attacks import LOADERS
from .attacks.read_back import READ_BACK, write
from .targets import TARGETS, Target, measure
from .watch import Finding

AT_ONCE = 1000
"""Inputs per process."""
SILENCE = 120
"""Seconds after which a process that reports nothing is ended."""


def followed(work: Callable[[Connection], None]) -> Iterator[Any]:
    """Run ``work`` in a process and yield what it sends; a ``Finding`` at the end if it dies."""
    here, there = multiprocessing.Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(target=work, args=(there,))
    worker.start()
    there.close()
    try:
        while here.poll(SILENCE):
            message = here.recv()
            if message is None:
                return
            yield message
    except EOFError:
        pass
    finally:
        worker.kill()
        worker.join()
    # SIGPROF (27) ends a process that has used up its time; -9 is a wait without end.
    kind = "hang" if worker.exitcode in {-27, -9} else "crash"
    yield Finding("", 0, kind, f"the process ended with {worker.exitcode}")


def batch(target: Target, seed: int, start: int, stop: int) -> list[dict[str, Any]]:
    """Run inputs ``start`` to ``stop`` in processes that are replaced if they die."""
    found: list[dict[str, Any]] = []
    while start < stop:
        last = stop - 1
        for message in followed(lambda to: watch.work(target, range(start, stop), seed, to)):
            if isinstance(message, Finding):
                found.append(asdict(message) | {"target": target.name, "number": last})
            elif isinstance(message, dict):
                found.append(message)
            else:
                last = message
        start = last + 1
    return found


def fuzz(target: Target, seed: int | None, count: int, folder: Path) -> bool:
    """Run the next inputs of a target, at most up to its ``count``-th; False if none is left."""
    path = folder / f"{target.name}.json"
    state = json.loads(path.read_text()) if path.exists() else {}
    if not state or seed not in {None, state["seed"]}:
        fresh = int(time.time()) if seed is None else seed
        state = {"seed": fresh, "done": 0, "seconds": 0.0, "findings": 0}
    start, began = state["done"], time.monotonic()
    stop = min(start + AT_ONCE, count)
    if start >= stop:
        return False
    target.good()  # the seeds are made once, before the processes that share them
    found = batch(target, state["seed"], start, stop)
    with (folder / "findings.jsonl").open("a") as file:
        for finding in found:
            file.write(json.dumps({"seed": state["seed"]} | finding) + "\n")
    state["done"], state["findings"] = stop, state["findings"] + len(found)
    state["seconds"] += time.monotonic() - began
    path.write_text(json.dumps(state))
    print(
        f"{target.name}: {stop:,} inputs of seed {state['seed']}, {state['seconds']:.0f} s, "
        f"{state['findings']} findings",
        flush=True,
    )
    return True


def fuzz_all(names: Iterable[str], seed: int | None, count: int, until: float, folder: Path) -> int:
    """Run the targets in turn until all are done or the time is up; returns the findings."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting = list(names)
    while waiting:
        for name in list(waiting):
            if time.monotonic() > until:
                waiting = []
            elif not fuzz(TARGETS[name], seed, count, folder):
                waiting.remove(name)
    states = (folder / f"{name}.json" for name in names)
    return sum(json.loads(path.read_text())["findings"] for path in states if path.exists())


def attack(name: str, prepare: Callable[[Path], Path], read: Callable[[Path], object]) -> int:
    """Run one attack in a process of its own and print what is wrong, or that nothing is."""
    with TemporaryDirectory(prefix="fuzz") as parent:
        folder = Path(parent) / "in"
        folder.mkdir()
        path = prepare(folder)
        size = watch.age(folder)

        def work(to: Connection) -> None:
            watch.limit()
            to.send(watch.observe(lambda: read(path), size, watch.Watch(Path(parent))))
            to.send(None)

        (found, *_) = [*followed(work), None]
    if isinstance(found, Finding):
        found = (found.kind, found.text, "")
    print(json.dumps({"attack": name, "found": found}), flush=True)
    return found is not None


def attacks() -> int:
    """Run all attacks; returns the number of those that succeed."""
    succeeded = 0
    for loader, table in LOADERS.items():
        for name, make in table.items():
            succeeded += attack(f"{loader}: {name}", make, measure)
    for kind, changes in READ_BACK.items():
        target = TARGETS[kind]
        entry = target.good().entry
        for name, change in changes.items():

            def prepare(folder: Path, kind: str = kind, change: Any = change) -> Path:
                write(folder, kind, change)
                return folder

            def read(path: Path, target: Target = target, entry: str = entry) -> None:
                target.run(path / entry)

            succeeded += attack(f"{kind}: {name}", prepare, read)
    return succeeded


def show(target: Target, number: int, seed: int) -> None:
    """Run one input in this process and let its error pass."""
    with TemporaryDirectory() as name:
        files, entry = target.case(number, seed)
        watch.write(Path(name), files)
        for file, content in files.items():
            print(file, len(content), content[:300])
        target.run(Path(name) / entry)


def main() -> int:
    """Read the arguments and run; returns the exit code."""
    # A forked process has none of its parent's threads and waits for them without end.
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--folder", type=Path, default=Path("build") / "fuzz")
    parser.add_argument("--attacks", action="store_true")
    parser.add_argument("--show", nargs=2, metavar=("TARGET", "NUMBER"))
    parser.add_argument("--seed", type=int)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.show:
        show(TARGETS[given.show[0]], int(given.show[1]), given.seed)
        return 0
    if given.attacks:
        return int(attacks() > 0)
    until = time.monotonic() + given.seconds
    names = given.target or list(TARGETS)
    return int(fuzz_all(names, given.seed, given.count, until, given.folder) > 0)


if __name__ == "__main__":
    sys.exit(main())
