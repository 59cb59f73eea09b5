"""The command line as a user meets it: exit codes, one clear line for
what is wrong, kill -9 and go on.
"""

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from spectail import cli
from spectail.cli import run
from tests.conftest import weights


def _columns(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "layers.parquet").drop(columns="seconds")


def test_analyze_prints_the_extremes_and_the_report(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["analyze", str(checkpoint), "--out", str(tmp_path / "run")]) == 0
    output = capsys.readouterr().out
    assert "Heaviest tails" in output
    assert "10 ok, 3 skipped" in output
    assert f"report: {tmp_path / 'run' / 'report.html'}" in output
    assert (tmp_path / "run" / "report.html").exists()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == metadata.version("spectail")


def test_quiet_prints_nothing(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["analyze", str(checkpoint), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_options_reach_the_spec(checkpoint: Path, tmp_path: Path) -> None:
    options = (
        "--preset full --window 48 --placement grid:2 --cutoff top:0.2 --aspect-ratio "
        "1.5 --full-spectrum"
    )
    options += " --tolerance 0.3"
    assert (
        run(
            [
                "analyze",
                str(checkpoint),
                "--out",
                str(tmp_path),
                *options.split(),
                "--exclude",
                "*embed*",
            ]
        )
        == 0
    )
    stored = json.loads((tmp_path / "analysis.json").read_text())["run"]
    assert stored["spec"] == {
        "aspect_ratio": 1.5,
        "window": 48,
        "placement": "grid:2",
        "cutoff": "top:0.2",
        "seed": 0,
        "legacy": False,
        "tolerance": 0.3,
    }
    assert stored["exclude"] == ["*embed*"]
    assert stored["full_spectrum"]


def test_a_failed_layer_is_named_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(weights() | {"bad.weight": torch.zeros(96, 96)}, tmp_path / "m.safetensors")
    assert run(["analyze", str(tmp_path / "m.safetensors"), "--out", str(tmp_path / "run")]) == 1
    assert "failed: bad: all weights are zero" in capsys.readouterr().out


def test_fresh_replaces_another_run(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["analyze", str(checkpoint), "--out", str(tmp_path / "run"), "--quiet"]
    assert run(command) == 0
    assert run([*command, "--cutoff", "top:0.1"]) == 2
    assert "--fresh" in capsys.readouterr().err
    assert run([*command, "--cutoff", "top:0.1", "--fresh"]) == 0


def test_compare_writes_a_page(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file(weights(seed=1), tmp_path / "other.safetensors")
    for source, out in ((checkpoint, "a"), (tmp_path / "other.safetensors", "b")):
        assert run(["analyze", str(source), "--out", str(tmp_path / out), "--quiet"]) == 0
    assert run(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "Moved most" in capsys.readouterr().out
    assert (tmp_path / "b" / "compare.html").stat().st_size > 10_000


class _Harmful:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch harmed",)


def _truncated(path: Path, source: Path) -> None:
    path.write_bytes(source.read_bytes()[:-1000])


def _sharded(path: Path, shard: str) -> None:
    path.write_text(json.dumps({"metadata": {}, "weight_map": {"a.weight": shard}}))


BAD_FILES = {
    "absent.safetensors": None,
    "empty.safetensors": lambda path, source: path.write_bytes(b""),
    "truncated.safetensors": _truncated,
    "text.safetensors": lambda path, source: path.write_text("hello"),
    "text.gguf": lambda path, source: path.write_text("hello"),
    "notes.txt": lambda path, source: path.write_text("hello"),
    "harmful.pt": lambda path, source: path.write_bytes(pickle.dumps({"w": _Harmful()})),
    "no_shard.safetensors.index.json": lambda path, source: _sharded(
        path, "model-00001.safetensors"
    ),
    "outside.safetensors.index.json": lambda path, source: _sharded(path, "../toy.safetensors"),
    "folder": lambda path, source: path.mkdir(),
    "no_such_module:build": None,
    "json:dumps": None,
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_source_is_one_line_and_exit_code_2(
    name: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write = BAD_FILES[name]
    if write:
        write(folder / name, checkpoint)
    source = name if ":" in name else str(folder / name)
    assert run(["analyze", source, "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("spectail: ")
    assert name.partition(":")[0].split(".")[0] in lines[0]
    assert not (tmp_path / "run").exists()
    assert not (folder / "harmed").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze"],
        ["analyze", "{source}"],
        ["analyze", "{source}", "--out", "{out}", "--aspect-ratio", "0"],
        ["analyze", "{source}", "--out", "{out}", "--aspect-ratio", "nan"],
        ["analyze", "{source}", "--out", "{out}", "--aspect-ratio", "wide"],
        ["analyze", "{source}", "--out", "{out}", "--window", "4096"],
        ["analyze", "{source}", "--out", "{out}", "--window", "-3"],
        ["analyze", "{source}", "--out", "{out}", "--window", "9" * 5000],
        ["analyze", "{source}", "--out", "{out}", "--preset", "best"],
        ["analyze", "{source}", "--out", "{out}", "--engine", "steam"],
        ["analyze", "{source}", "--out", "{out}", "--include", "nothing*"],
        ["analyze", "{source}", "--out", "{source}"],
        ["analyze", "{source}", "--out", ""],
        ["analyze", "{source}", "--out="],
        ["analyze", "{source}", "--out", "{out}", "--no-such-option"],
        ["compare", "{out}", "{out}"],
        ["fly"],
    ],
    ids=lambda arguments: " ".join(arguments)[:80],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    arguments: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checkpoint.read_bytes()
    filled = [part.format(source=checkpoint, out=tmp_path / "run") for part in arguments]
    assert run(filled) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
    assert checkpoint.read_bytes() == before


def _mount(folder: Path, size: str, *more: str) -> bool:
    options = ",".join((f"size={size}", *more))
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("size", ["4k", "64k"], ids=["journal", "report"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    if not _mount(out, size):
        pytest.skip("a small file system cannot be mounted here")
    try:
        command = ["analyze", str(checkpoint), "--out", str(out), "--quiet"]
        assert run(command) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        assert "No space left on device; free some space and run the same command again" in lines[0]
        assert [path.name for path in out.iterdir()] == [".progress.jsonl"]
        assert _mount(out, "64m", "remount")
        assert run(command) == 0
        assert run([*command[:3], str(tmp_path / "whole"), "--quiet"]) == 0
        pd.testing.assert_frame_equal(_columns(out), _columns(tmp_path / "whole"))
    finally:
        subprocess.run(["umount", str(out)], check=True)


SLOW_DOWN = """
import sys, time
import spectail.measuring.engines.local as local
measure = local.measure_layer
def slowly(layer, plan):
    time.sleep(600 if layer.name == "model.layers.2.self_attn.q_proj" else 0.05)
    return measure(layer, plan)
local.measure_layer = slowly
from spectail.cli import main
main(sys.argv[1:])
"""
"""The command, which never ends: it waits for its last layer."""


def test_kill_9_at_any_moment_loses_nothing(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["analyze", str(checkpoint), "--quiet", "--out"]
    assert run([*arguments, str(tmp_path / "whole")]) == 0
    journal, before = tmp_path / "run" / ".progress.jsonl", 1
    for i in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW_DOWN, *arguments, str(tmp_path / "run")]
        )
        # A line for the run and one for each layer but the last: then no more will come.
        while not journal.exists() or journal.read_bytes().count(b"\n") <= min(before, 12):
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(0.037 * i)
        process.kill()
        process.wait()
        before = journal.read_bytes().count(b"\n")
    assert 1 < before <= 13
    assert run([*arguments, str(tmp_path / "run")]) == 0
    pd.testing.assert_frame_equal(_columns(tmp_path / "run"), _columns(tmp_path / "whole"))
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        p.name for p in (tmp_path / "whole").iterdir()
    }


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_listed_help_is_that_of_the_command(name: str) -> None:
    command = getattr(import_module(f"spectail.cli.{name}"), name)
    assert " ".join(command.__doc__.split("\n\n")[0].split()) == cli.COMMANDS[name]


@pytest.mark.parametrize(
    "statement",
    [
        "spectail.cli.run(['--help'])",
        "spectail.cli.run(['--version'])",
        "spectail.cli.run([])",
        "spectail.__version__",
        "spectail.SpectailError",
    ],
)
def test_what_needs_no_model_imports_nothing_heavy(statement: str) -> None:
    code = (
        "import sys, spectail\n"
        f"if {statement!r}.startswith('spectail.cli'): import spectail.cli\n"
        f"{statement}; print('MODULES', *sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    modules = shown.split("MODULES")[1].split()
    heavy = {"torch", "numpy", "scipy", "pandas", "pyarrow", "plotly", "transformers"}
    assert not heavy & {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("name", ["compare", "allocate", "export"])
def test_commands_that_read_results_import_neither_torch_nor_what_draws_and_solves(
    name: str,
) -> None:
    code = f"import sys, spectail.cli.{name}; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"torch", "plotly", "scipy.optimize", "scipy.stats", "yaml"}
    assert not heavy & set(found.stdout.split())


def test_a_measurement_starts_without_what_only_its_end_or_other_settings_need() -> None:
    code = "import sys, spectail.cli.analyze; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    modules = {module.partition(".")[0] for module in found.stdout.split()}
    assert not {"scipy", "pandas", "pyarrow", "plotly", "transformers", "yaml"} & modules


def test_the_garbage_collector_waits_for_the_imports_only() -> None:
    code = (
        "import gc, spectail.cli; spectail.cli.run(['compare', '--help'])\n"
        "print('FROZEN', gc.isenabled(), gc.get_freeze_count() > 10_000)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.endswith("FROZEN True True\n")


def test_the_package_runs_as_a_module() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "spectail", "--version"], check=True, capture_output=True, text=True
    )
    assert shown.stdout.strip() == metadata.version("spectail")


def test_no_command_prints_the_help_and_no_empty_message(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run([]) == 2
    out, err = capfd.readouterr()
    assert "Usage: spectail" in out
    assert err == ""


@pytest.mark.parametrize("words", [["--tolerance", "1%"], ["--tolerance=1%"]])
def test_a_number_that_is_none_is_named(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["analyze", "demo", "--out", "run", *words]) == 2
    assert "1%" in capfd.readouterr().err
