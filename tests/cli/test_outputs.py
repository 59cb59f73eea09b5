"""What commands write: never over other files, checked before the work, and numbers in any case."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spectail.basics import files
from spectail.cli import run
from tests.export.conftest import allocation, llama_names
from tests.language import llama, tokenizer, words


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, a text, an analysis of the model, its parts and an allocation of bits."""
    folder = tmp_path_factory.mktemp("inputs")
    llama().save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    (folder / "text.txt").write_text(words(100))
    run(["analyze", str(folder / "model"), "--out", str(folder / "run"), "--quiet"])
    for shard in ("1/2", "2/2"):
        part = ["analyze", str(folder / "model"), "--shard", shard, "--quiet"]
        run([*part, "--out", str(folder / "parts")])
    allocation(dict.fromkeys(llama_names(), 4), "bits").save(folder / "bits.json")
    return folder


COMMANDS = {
    "analyze": ["{in}/model"],
    "checkpoints": ["{in}/model", "{in}/model/model.safetensors"],
    "merge": ["{in}/parts"],
    "card": ["{in}/run"],
    "compare": ["{in}/run", "{in}/run"],
    "allocate": ["{in}/run", "--target", "sparsity", "--budget", "0.5", "--missing", "mean"],
    "export": ["{in}/bits.json", "--to", "llama.cpp"],
    "evaluate": [
        "{in}/model",
        "--text",
        "{in}/text.txt",
        "--seq-len",
        "20",
        "--max-sequences",
        "2",
    ],
    "sensitivity": ["{in}/model", "--calibration", "{in}/text.txt", "--seq-len", "16"],
    "prune": [
        "{in}/model",
        "--method",
        "magnitude",
        "--allocation",
        "uniform",
        "--sparsity",
        "0.5",
    ],
}
NUMBERS = {
    "analyze": "Heaviest tails",
    "merge": "Heaviest tails",
    "compare": "No layer moved",
    "allocate": "sparsity 0.5",
    "evaluate": "perplexity",
    "prune": "sparsity",
}
"""What is printed of the numbers; an export has none."""


def command(name: str, inputs: Path, out: Path) -> list[str]:
    arguments = [word.replace("{in}", str(inputs)) for word in COMMANDS[name]]
    return ["analyze" if name == "checkpoints" else name, *arguments, "--out", str(out)]


def one_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("spectail: ")
    return lines[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_of_the_user_stays(
    name: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    out.write_text("my notes")
    assert run(command(name, inputs, out)) == 2
    assert str(out) in one_line(capsys.readouterr().err)
    assert out.read_text() == "my notes"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes names of any bytes")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_path_that_is_not_utf8_is_written_or_refused_at_once(
    name: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / os.fsdecode(b"\xff")
    code = run([*command(name, inputs, out), "--quiet"])
    assert (code, out.exists()) == ((2, False) if name == "prune" else (0, True))
    if code:
        one_line(capsys.readouterr().err)
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("name", ["card", "compare", "allocate", "export"])
def test_a_file_of_another_command_stays(
    name: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in ("report.html", "analysis.json"):
        out = tmp_path / other
        before = (inputs / "run" / other).read_bytes()
        out.write_bytes(before)
        assert run(command(name, inputs, out)) == 2
        assert other in one_line(capsys.readouterr().err)
        assert out.read_bytes() == before


@pytest.mark.parametrize("name", ["analyze", "checkpoints", "merge", "card", "compare", "allocate"])
def test_the_same_command_runs_twice(name: str, inputs: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert run([*command(name, inputs, tmp_path / "out"), "--quiet"]) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_devices_stay_devices(
    name: str, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert run(command(name, inputs, tmp_path / "pipe")) == 2
    assert "pipe" in one_line(capsys.readouterr().err)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_printed_if_they_cannot_be_written(
    name: str,
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "_flush", full)
    assert run(command(name, inputs, tmp_path / "new" / "out")) == 2
    output = capsys.readouterr()
    assert "No space left on device" in one_line(output.err)
    assert NUMBERS[name] in output.out
    assert str(tmp_path / "new" / "out") not in output.out, "nothing was written there"
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    kept = ("analyze", "merge")
    assert left == ([tmp_path / "new" / "out" / ".progress.jsonl"] if name in kept else [])


@pytest.mark.parametrize("name", ["evaluate", "prune"])
def test_long_work_begins_only_if_its_result_can_be_written(
    name: str,
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(f"spectail.cli.{name}.open_language_model", loaded)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/proc/new/out")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    places = (
        "file/out",
        "link",
        "nowhere/out",
        os.fsdecode(b"\xff") if name == "prune" else "link",
    )
    for out in (*(tmp_path / place for place in places), Path("/proc/new/out")):
        assert run(command(name, inputs, out)) == 2
        one_line(capsys.readouterr().err)


AS_SOMEBODY_ELSE = """
import os, sys
from spectail.cli import run
writable, *commands = sys.argv[1:]
# Once as root: Python's own files may not be readable for others.
for number, arguments in enumerate(commands):
    run([*arguments.split("|")[:-1], f"{writable}/{number}", "--quiet"])
os.setgid(65534)
os.setuid(65534)
for arguments in commands:
    print(run(arguments.split("|")), file=sys.stderr)
"""


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users may read, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can be others")
def test_a_read_only_folder_is_one_line_each(inputs: Path, public: Path) -> None:
    folder = public / "mine"
    folder.mkdir(mode=0o755)
    shutil.copytree(inputs, public / "inputs")
    for path in (public, *public.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    names = ["analyze", "checkpoints", "merge", "card", "compare", "allocate", "export"]
    commands = ["|".join(command(name, public / "inputs", folder / name)) for name in names]
    done = subprocess.run(
        [sys.executable, "-c", AS_SOMEBODY_ELSE, public / "root", *commands],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2 * len(names), done.stderr
    assert lines[1::2] == ["2"] * len(names)
    for line in lines[::2]:
        assert line.startswith("spectail: cannot read or write ")
        assert "Permission denied" in line
    assert not list(folder.iterdir())


def test_a_closed_pipe_does_not_cost_the_file(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "allocation.json"
    line = shlex.join([sys.executable, "-m", "spectail", *command("allocate", inputs, out)])
    subprocess.run(f"{line} | true", shell=True, check=False, stderr=-1)
    assert json.loads(out.read_text())
