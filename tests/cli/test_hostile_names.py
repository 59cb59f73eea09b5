"""Names that would write to the terminal, break rich's markup or run in a spreadsheet."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

import spectail as st
from spectail.basics.texts import visible
from spectail.cli import run

NAMES = {
    "markup": "[/nope].[bold red]x[/]",
    "escape": "a\x1b[31mred\x1b[0m",
    "title of the window": "a\x1b]0;title\x07b",
    "a link": "a\x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\",
    "NUL": "a\0b",
    "C1 control": "a\x9b31mb",
    "turned around": "a\u202etxt.exe",
    "isolate": "a\u2066b\u2069",
    "line break": "first\nspectail: all is well",
    "carriage return": "a\rspectail: done",
    "backspaces": "abc\b\b\bxyz",
    "line separator": "a\u2028b",
    "emoji code": "a:smile:b",
    "formula": "=HYPERLINK(1)",
    "plus": "+1",
    "minus": "-1+1",
    "at": "@SUM(1)",
    "tab": "\t=1",
    "wide formula": "\uff1d1+1",
    "formula in the second line": "\n=1",
}
HARMLESS = re.compile(r"[\x20-\x7e\n\u00a0-\u1fff\u2010-\u2027\u2030-\u205e\u2100-\uffff]*")
"""Text without control characters and marks of direction."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A safetensors file whose layers have these names, one of them with NaN."""
    header, data = {}, b""
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES.values()):
        values = rng.standard_normal((64, 64)).astype(np.float32)
        if number % 4 == 1:
            values[0, 0] = np.nan
        header[f"layers.{number % 5}.{name}.weight"] = {
            "dtype": "F32", "shape": [64, 64], "data_offsets": [len(data), len(data) + 16384],
        }  # fmt: skip
        data += values.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return tmp_path / "m.safetensors"


def test_every_command_shows_names_harmless_and_whole(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    out, again = str(tmp_path / "out"), str(tmp_path / "again")
    allocation = str(tmp_path / "a.json")
    sparsity = ["--target", "sparsity", "--budget", "0.5"]
    commands = {
        0: ["describe", str(model)],
        1: ["analyze", str(model), "--out", out],
        2: ["analyze", str(model), "--out", again, "--cutoff", "top:0.2"],
        3: ["compare", out, again],
        4: ["allocate", out, *sparsity, "--out", allocation, "--missing", "mean"],
        5: ["allocate", out, *sparsity, "--out", str(tmp_path / "b.json"), "--include", "nothing"],
        6: ["analyze", str(tmp_path / "\x1b[31m[/nope]"), "--out", out],
    }
    shown = ""
    for command in commands.values():
        assert run(command) in {0, 1, 2}
        printed = capsys.readouterr()
        assert HARMLESS.fullmatch(printed.out + printed.err), command
        shown += printed.out + printed.err
    analysis = st.Analysis.load(out)
    assert len(analysis.layers) == len(NAMES)
    for layer in analysis.layers:
        # Every failed row is named whole by analyze.
        assert layer.status != "failed" or visible(layer.name) in shown
    assert r"\x1b[31m[/nope]" in shown


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_what_they_are_in_the_files(name: str, tmp_path: Path) -> None:
    layer = f"{NAMES[name]}"
    st.analyze({f"{layer}.weight": np.ones((4, 4), np.float32)}, out=tmp_path)
    assert st.Analysis.load(tmp_path).layers[0].name == layer
    with (tmp_path / "layers.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    # Spreadsheets run a cell that begins with one of these; the apostrophe makes it a text.
    run_by_spreadsheets = layer.startswith(("=", "+", "-", "@", "\t", "\n", "\uff1d"))
    assert row["name"] == "'" * run_by_spreadsheets + layer.replace("\r", r"\r")
    assert st.Analysis.load(tmp_path).table["name"].tolist() == [layer]


def test_what_can_be_seen_is_shown_as_it_is() -> None:
    for text in ("model.layers.0.q_proj", "слой.0", "层.权重", "a b [x] {y}"):
        assert visible(text) == text
    assert visible("a\u200fb") == r"a\u200fb"
