"""Commands in processes that are killed, or run out of disk, at one of their file operations.

``python -m tests.faults FOLDER EVERY COMMANDS FAULTS`` runs each command once undisturbed, then
for every EVERY-th of its file operations once with the fault there, and once more without. It
prints a line for each thing that is wrong. The processes are forks of one that has imported
everything, so each takes a fraction of a second. Faults: ``kill`` (SIGKILL), ``full`` (no room from
there on), ``broken`` (every operation fails from there on), ``size`` (no file may be as large as it
becomes) and ``moment`` (SIGKILL after a part of the run's time).
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file

from experiments import common
from spectail.allocation.allocation import Allocation
from spectail.cli import COMMANDS, run
from tests.conftest import weights
from tests.language import llama, tokenizer, words

WRITES = ("open", "os.mkdir", "os.truncate", "tempfile.mkdtemp", "os.write", "os.fsync")
"""Operations that need room on the disk."""
TEXTS = ("results.json", "steps.jsonl", "ppl.json", "page.md", "types.txt", "card.md")
"""Files that are the same after every run."""
EVENTS = (*WRITES, "os.rename", "os.remove", "os.rmdir", "fcntl.flock", "os.close")


def commands(inputs: Path, out: Path) -> dict[str, list[str]]:
    """Every command that writes, with what it writes in ``out``."""
    model, language = str(inputs / "model.safetensors"), str(inputs / "language")
    other = str(inputs / "other.safetensors")
    run_, allocation = str(inputs / "run"), str(inputs / "allocation.json")
    text = ["--text", str(inputs / "text.txt"), "--seq-len", "20", "--max-sequences", "2"]
    uniform = ["--method", "magnitude", "--allocation", "uniform", "--sparsity", "0.5"]
    choice = ["--method", "magnitude", "--allocation", "depth:first", "--sparsity", "0.5"]
    choice += ["--eps", "auto", "--selection", str(inputs / "text.txt"), "--seq-len", "20"]
    few = ["--calibration", str(inputs / "text.txt"), "--seq-len", "16", "--kind", "q,up"]
    budget = ["--target", "sparsity", "--budget", "0.5", "--missing", "mean"]
    return {
        "analyze": ["analyze", model, "--out", str(out / "run")],
        "fresh": ["analyze", model, "--fresh", "--cutoff", "top:0.2", "--out", str(out / "run")],
        "traps": ["analyze", model, "--traps", "--erg", "--out", str(out / "run")],
        "base": ["analyze", model, "--base", other, "--out", str(out / "run")],
        "checkpoints": ["analyze", model, other, "--out", str(out / "runs")],
        "merge": ["merge", str(inputs / "parts"), "--out", str(out / "run")],
        "card": ["card", run_, "--out", str(out / "new" / "card.md")],
        "compare": ["compare", run_, run_, "--out", str(out / "new" / "page.html")],
        "allocate": ["allocate", run_, *budget, "--out", str(out / "new" / "allocation.json")],
        "export": ["export", allocation, "--to", "llama.cpp", "--out", str(out / "types.txt")],
        "evaluate": ["evaluate", language, *text, "--out", str(out / "new" / "ppl.json")],
        "sensitivity": ["sensitivity", language, *few, "--out", str(out / "new" / "s.json")],
        "prune": ["prune", language, *uniform, "--out", str(out / "new" / "pruned")],
        "choose": ["prune", language, *choice, "--out", str(out / "new" / "chosen")],
        "experiment": ["experiment", str(out / "work")],
    }


def prepare(inputs: Path) -> int:
    """Write the models and results that the commands read."""
    for seed, name in enumerate(("model", "other")):
        whole = weights(seed, blocks=2)
        some = {name: weight for name, weight in whole.items() if "mlp" not in name}
        save_file(some, inputs / f"{name}.safetensors")
    language = llama()
    language.save_pretrained(inputs / "language")
    tokenizer().save_pretrained(inputs / "language")
    (inputs / "text.txt").write_text(words(100))
    code = run(["analyze", str(inputs / "language"), "--out", str(inputs / "run"), "--quiet"])
    for shard in ("1/2", "2/2"):
        part = ["analyze", str(inputs / "model.safetensors"), "--shard", shard, "--quiet"]
        code += run([*part, "--out", str(inputs / "parts")])
    bits = ["--target", "bits", "--budget", "4", "--out", str(inputs / "allocation.json")]
    return code + run(["allocate", str(inputs / "run"), *bits, "--missing", "mean", "--quiet"])


def experiment(folder: Path) -> int:
    """Do what every experiment does, in small."""
    journal = common.Journal.open(folder / "steps.jsonl", {"seed": 1})
    common.run_steps(journal, [(str(i), lambda i=i: i**2) for i in range(4)])  # type: ignore[misc]
    common.save_json(folder / "results.json", journal.done)
    page = folder / "page.md"
    if not page.exists():
        page.write_text("<!-- a -->\n<!-- /a -->\n")
    common.fill_page(page, {"a": "filled"})
    return 0


def perform(arguments: list[str]) -> int:
    """Run a command."""
    if arguments[0] == "experiment":
        return experiment(Path(arguments[1]))
    return run(arguments)


def in_child(action: Callable[[], int], seconds: float = math.inf) -> tuple[int, str]:
    """Run something in a forked process; return its exit code, or minus its signal, and errors.

    After so many seconds it is killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            code = action()
        except BaseException:  # noqa: BLE001 - the parent reports it
            traceback.print_exc()
            code = 99
        sys.stderr.flush()
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as stream:
        if seconds < math.inf:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        said = stream.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said


class Disturbance:
    """Counts the file operations in a folder, and acts from the one with number ``at`` on."""

    def __init__(self, folder: Path, at: int, fault: str) -> None:
        self.folder, self.at, self.fault, self.count = str(folder), at, fault, 0
        for name in ("write", "fsync", "close"):
            setattr(os, name, self._followed(f"os.{name}", getattr(os, name)))
        sys.addaudithook(self._hook)

    def _followed(self, event: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def followed(*arguments: Any) -> Any:
            with contextlib.suppress(OSError):
                self._hook(event, (os.readlink(f"/proc/self/fd/{arguments[0]}"),))
                return inner(*arguments)
            # Outside of the block, so that the error of the fault is raised.
            self._raise(event)
            return inner(*arguments)

        return followed

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS:
            return
        path = arguments[0]
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & 3):
            return
        with contextlib.suppress(OSError, TypeError):
            path = (
                os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
            )
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not str(path).startswith(self.folder):
            return
        self.count += 1
        if self.count >= self.at and self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self._raise(event)

    def _raise(self, event: str) -> None:
        if self.count >= self.at and self.fault == "full" and event in WRITES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.count >= self.at and self.fault == "broken":
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def files_in(folder: Path) -> set[str]:
    """All files and folders below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def damage(out: Path) -> Iterator[str]:
    """What is wrong with the finished files in a folder."""
    for path in out.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(out).parts)
        if hidden or path.is_dir():
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".html":
                assert path.read_text().rstrip().endswith("</html>")
            elif path.suffix == ".parquet":
                pd.read_parquet(path)
            elif path.suffix == ".safetensors":
                from safetensors.torch import load_file

                load_file(path)
            elif path.suffix == ".csv":
                pd.read_csv(path)
            elif path.name == "types.txt":
                assert path.read_text().endswith("\n")
        except Exception as error:  # noqa: BLE001 - whatever a reader of damaged files raises
            yield f"{path.relative_to(out)} is damaged: {error!r}"


def numbers(out: Path) -> Any:
    """What a command has measured, without times."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.suffix == ".parquet":
            found[name] = pd.read_parquet(path).drop(columns="seconds").to_json()
        elif path.name in TEXTS:
            found[name] = path.read_text()
        elif path.name == "allocation.json":
            found[name] = dict(Allocation.load(path))
    return found


def limited(size: int, arguments: list[str]) -> int:
    """Run a command that may write no file larger than ``size`` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return perform(arguments)


def counted(folder: Path, arguments: list[str]) -> tuple[int, str]:
    """Run a command; return the number of its file operations in a folder."""
    reading, writing = os.pipe()

    def action() -> int:
        watch = Disturbance(folder, sys.maxsize, "none")
        code = perform(arguments)
        os.write(writing, str(watch.count).encode())
        return code

    code, said = in_child(action)
    os.close(writing)
    with os.fdopen(reading) as stream:
        count = stream.read()
    if code:
        raise SystemExit(f"{arguments[0]} fails undisturbed: {said}")
    return int(count), said


def faults(inputs: Path, work: Path, command: str, fault: str, every: int) -> Iterator[str]:
    """Run a command with a fault at each of its operations; say what goes wrong."""
    work.mkdir()
    whole = work / "whole"
    started = time.perf_counter()
    operations, _ = counted(whole, start(inputs, whole, command))
    duration = time.perf_counter() - started
    sizes = sorted({p.stat().st_size for p in whole.rglob("*") if p.is_file()})
    places = range(0, len(sizes), every) if fault == "size" else range(1, operations + 1, every)
    sys.stderr.write(f"{command}: {operations} operations, {len(places)} runs with {fault}\n")
    for at in places:
        out = work / f"{fault}-{at}"
        arguments = start(inputs, out, command)

        def disturbed(arguments: list[str] = arguments, out: Path = out, at: int = at) -> int:
            if fault == "size":
                return limited(max(0, sizes[at] - 1), arguments)
            if fault != "moment":
                Disturbance(out, at, fault)
            return perform(arguments)

        seconds = duration * at / operations if fault == "moment" else math.inf
        for problem in once(command, fault, out, disturbed, seconds):
            yield f"{command}, {fault} at {at}: {problem}"
        for problem in again(out, whole, arguments):
            yield f"{command}, {fault} at {at}, run again: {problem}"


def start(inputs: Path, out: Path, command: str) -> list[str]:
    """Make the folder of a command's outputs, and return its arguments."""
    out.mkdir()
    arguments = commands(inputs, out)
    if command == "fresh":
        in_child(lambda: perform(arguments["analyze"]))
    return arguments[command]


def once(
    command: str, fault: str, out: Path, disturbed: Callable[[], int], seconds: float
) -> Iterator[str]:
    """Run a command with its fault; say what is wrong with what it prints and leaves."""
    before = files_in(out)
    code, said = in_child(disturbed, seconds)
    # An experiment is a script: its errors keep Python's traceback.
    if not (command == "experiment" and "OSError" in said):
        yield from check(code, said, fault, out, before)


def again(out: Path, whole: Path, arguments: list[str]) -> Iterator[str]:
    """Run a command undisturbed after a fault; say what differs from a run without one."""
    there = (out / Path(arguments[-1]).relative_to(out)).exists()
    code, said = in_child(lambda: perform(arguments))
    if code and not (code == 2 and there and "exists" in said):
        yield f"exit code {code}, {said}"
    if files_in(out) != files_in(whole):
        yield f"files differ: {sorted(files_in(out) ^ files_in(whole))}"
    elif numbers(out) != numbers(whole):
        yield "numbers differ"


def check(code: int, said: str, fault: str, out: Path, before: set[str]) -> Iterator[str]:
    """What is wrong after a disturbed run."""
    yield from damage(out)
    if fault in {"kill", "moment"}:
        return
    if code not in (0, 2):
        yield f"exit code {code}: {said}"
    if code == 2 and len(said.strip().splitlines()) != 1:
        yield f"not one line: {said}"
    left = {name for name in files_in(out) - before if ".part" in name}
    if left and fault != "broken":
        yield f"left behind: {sorted(left)}"


if __name__ == "__main__":
    os.environ["COLUMNS"] = "200"
    torch.set_num_threads(1)
    # Imported before the forks, so that they do not read files of their own.
    with contextlib.redirect_stdout(io.StringIO()):
        for name in COMMANDS:
            run([name, "--help"])
    folder, every, names, kinds = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    made, why = in_child(lambda: prepare(folder))
    if made:
        raise SystemExit(f"the inputs cannot be made: {why}")
    for name in names.split(","):
        for kind in kinds.split(","):
            for problem in faults(folder, folder / f"{name}-{kind}", name, kind, every):
                sys.stdout.write(f"{problem}\n")
