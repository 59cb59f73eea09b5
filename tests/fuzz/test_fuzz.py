"""The fuzzers, for a short time: no foreign error, no wait without end, no memory, no code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .attacks import LOADERS
from .attacks.read_back import READ_BACK
from .targets import TARGETS

ROOT = Path(__file__).parents[2]
INPUTS = 50
"""Inputs of each kind; ``make fuzz`` runs 100,000."""


def _run(*arguments: str) -> str:
    """Run the fuzzers in a process that no other test has used; the exit code tells nothing."""
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    # One thread from the start: libraries' thread pools do not survive a fork.
    alone = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode in {0, 1}, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def attacked() -> dict[str, object]:
    """What each attack has done; None if nothing."""
    lines = map(json.loads, _run("--attacks").splitlines())
    return {line["attack"]: line["found"] for line in lines}


ATTACKS = [f"{kind}: {name}" for kind, table in (LOADERS | READ_BACK).items() for name in table]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack(attacked: dict[str, object], attack: str) -> None:
    assert attacked[attack] is None


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What the fuzzers have found in a few inputs of each kind."""
    folder = tmp_path_factory.mktemp("fuzz")
    printed = _run("--count", str(INPUTS), "--seed", "0", "--folder", str(folder))
    assert printed.count(f"{INPUTS} inputs") == len(TARGETS)
    return [json.loads(line) for line in (folder / "findings.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_files(findings: list[dict[str, str]], target: str) -> None:
    assert [found for found in findings if found["target"] == target] == []


def test_the_watch_notices(tmp_path: Path) -> None:
    script = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from tests.fuzz import watch
from tests.fuzz.__main__ import attack

faults = {
    "foreign": lambda path: {}["a"],
    "hang": lambda path: [None for _ in iter(int, 1)],
    "memory": lambda path: len(b"x" * 2**29),
    "outside": lambda path: open(path.parents[1] / "a file outside", "rb"),
    "crash": lambda path: __import__("os").abort(),
}
for kind, fault in faults.items():
    attack(kind, lambda folder: folder, fault)
attack("nothing", lambda folder: folder, lambda path: None)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = map(json.loads, done.stdout.splitlines())
    found = {line["attack"]: line["found"] for line in lines}
    assert {kind: fault and fault[0] for kind, fault in found.items()} == {
        kind: None if kind == "nothing" else kind for kind in found
    }
    assert len(found) == 6
