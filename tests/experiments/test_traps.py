"""The experiment on traps runs at toy size and counts all seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.traps import __main__ as traps


def test_the_quick_run_measures_every_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traps.main(["--quick", "--out", str(tmp_path)])
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert len(runs) == len(traps.LABELS) * len(traps.RATES) * traps.QUICK.seeds
    for stages in runs.values():
        assert tuple(stages) == traps.STAGES
        assert [stage["step"] for stage in stages.values()] == sorted(
            stage["step"] for stage in stages.values()
        )
        for stage in stages.values():
            assert [layer["name"] for layer in stage["layers"]] == ["0", "2"]
            assert all(layer["n_traps"] is not None for layer in stage["layers"])
    table = capsys.readouterr().out
    assert table.count("\n| true, ") == table.count("\n| random, ") == 6


def test_the_page_shows_the_table_of_the_stored_results() -> None:
    found = json.loads((traps.HERE / "results.json").read_text())
    table = traps.table_of(found["runs"], found["settings"]["seeds"])
    assert table in traps.PAGE.read_text(encoding="utf-8")
