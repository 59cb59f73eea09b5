"""Outputs that cannot be written and signals that end a command, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from tests.processes import SIGNALLED_SLOW

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and signals of POSIX")
COMMAND = [sys.executable, "-m", "spectail"]
BUFFERED = {**os.environ, "PYTHONUNBUFFERED": ""}
"""Unwritten text is what Python keeps, unless a machine's settings forbid it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of many layers, which takes a second."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file({f"layers.{i}.weight": torch.randn(192, 192) for i in range(60)}, path)
    return path


@pytest.fixture(scope="module")
def analysis(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An analysis of the model."""
    folder = tmp_path_factory.mktemp("run")
    st.analyze(model, out=folder)
    return folder


def outputs(analysis: Path) -> list[list[str]]:
    """Commands that print by the console and by themselves, and need no torch."""
    budget = ["--target", "sparsity", "--budget", "0.5"]
    return [
        ["card", str(analysis)],
        ["compare", str(analysis), str(analysis), "--json"],
        ["allocate", str(analysis), *budget, "--out", str(analysis / "allocation.json")],
        ["--version"],
    ]


def run_into(stdout: Any, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that writes to a file or descriptor."""
    return subprocess.run(
        [*COMMAND, *arguments], stdout=stdout, stderr=-1, text=True, check=False, env=BUFFERED
    )


@pytest.mark.parametrize("number", range(4))
def test_a_full_disk_behind_standard_output_is_one_line(number: int, analysis: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run_into(full, outputs(analysis)[number])
    assert done.returncode == 2
    assert "No space left on device" in done.stderr.splitlines()[-1]
    assert "Exception" not in done.stderr


@pytest.mark.parametrize("number", range(4))
def test_a_reader_that_has_gone_ends_the_command_as_sigpipe_does(
    number: int, analysis: Path
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run_into(writing, outputs(analysis)[number])
    os.close(writing)
    assert done.returncode == 141
    assert "Exception" not in done.stderr


def test_a_full_disk_behind_standard_error_is_no_finished_run(model: Path, tmp_path: Path) -> None:
    command = [
        *COMMAND,
        "analyze",
        str(model),
        "--include",
        "layers.1.*",
        "--out",
        str(tmp_path / "a"),
    ]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=-1, stderr=full, check=False)
    # Code 1 is for finished runs with a failed layer.
    assert done.returncode == 2


def test_characters_that_standard_output_lacks_are_escaped(analysis: Path, tmp_path: Path) -> None:
    folder, page = str(analysis), str(tmp_path / "page.html")
    for arguments in (["card", folder], ["compare", folder, folder, "--out", page]):
        done = subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )
        assert (done.returncode, done.stderr) == (0, b"")
        done.stdout.decode("ascii")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_a_run_that_goes_on_later(
    name: str, model: Path, analysis: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [*SIGNALLED_SLOW, "analyze", str(model), "--out", str(out)]
    two = {**os.environ, "OMP_NUM_THREADS": "2"}
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=two) as process:
        wait_for_rows(out / ".progress.jsonl")
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    assert said.strip().splitlines()[-1] == (
        "interrupted; the same command goes on where it stopped"
    )
    assert [path.name for path in out.iterdir()] == [".progress.jsonl"]
    st.analyze(model, out=out)
    assert rows(out) == rows(analysis)


def test_nohup_goes_on_after_its_terminal_has_closed(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["nohup", *COMMAND, "analyze", str(model), "--out", str(out)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        wait_for_rows(out / ".progress.jsonl")
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 0


def wait_for_rows(journal: Path) -> None:
    """Wait until a run has measured some layers."""
    for _ in range(3000):
        if journal.exists() and journal.read_bytes().count(b"\n") > 3:
            return
        time.sleep(0.01)
    raise AssertionError("no layer was measured")


def rows(folder: Path) -> Any:
    """The numbers of a finished run."""
    return pd.read_parquet(folder / "layers.parquet").drop(columns="seconds").to_json()


IN_IMPORTS = """
import os, signal, time
from spectail.cli.signals import Stops
signal.signal(signal.SIGINT, signal.default_int_handler)
Stops()
inside = "os.kill(os.getpid(), signal.SIGINT)\\nfor _ in range(1000): pass\\nprint('finished')"
exec(compile(inside, "<frozen importlib._bootstrap>", "exec"))
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_within_the_import_system_comes_a_moment_later() -> None:
    """There it left a lock taken, for which a thread that imports waited for ever."""
    done = subprocess.run(
        [sys.executable, "-c", IN_IMPORTS], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.stdout.split() == ["finished", "stopped"], done.stderr
