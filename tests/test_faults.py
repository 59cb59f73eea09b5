"""Whatever happens to a command: what it leaves is whole, and the same command goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

FAST = "analyze,checkpoints,merge,card,compare,allocate,export,experiment"
SLOW = (
    "analyze,fresh,traps,base,checkpoints,merge,card,compare,allocate,export,evaluate,"
    "sensitivity,prune,choose,experiment"
)


def run(folder: Path, every: int, names: str, kinds: str) -> subprocess.CompletedProcess[str]:
    """Run the commands with faults, in a process that has computed nothing before it forks."""
    pytest.importorskip("transformers")
    return subprocess.run(
        [sys.executable, "-m", "tests.faults", str(folder), str(every), names, kinds],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="files are followed by /proc")
@pytest.mark.parametrize(
    ("every", "names", "kinds"),
    [
        pytest.param(12, FAST, "kill,full", id="some"),
        pytest.param(1, SLOW, "kill,moment,full,broken,size", id="all", marks=pytest.mark.slow),
    ],
)
def test_a_disturbed_command_leaves_whole_files_and_goes_on(
    tmp_path: Path, every: int, names: str, kinds: str
) -> None:
    done = run(tmp_path, every, names, kinds)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
    assert done.stderr.count("runs with") == len(names.split(",")) * len(kinds.split(","))
