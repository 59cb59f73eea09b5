"""Windows of five sizes, and few of them: the script runs, and its tables say what it found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import spectail as st
from experiments.window_size import __main__ as window_size


def test_it_runs_and_measures_every_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(window_size, "WORK", tmp_path)
    monkeypatch.setattr(window_size, "_quick_steps", lambda: list(quick_steps())[::5])
    window_size.main(["--quick", "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert len(found) == 3
    for layer in found.values():
        assert list(layer) == ["16", "24", "32", "48", "64"]
        for cell in layer.values():
            assert all(4 <= few["windows"] <= cell["windows"] for few in cell["few"].values())
    printed = capsys.readouterr().out
    assert "3 layers: 64 | 1.000 | 0.00 % (0.00 %)" in printed


quick_steps = window_size._quick_steps


def test_a_size_is_measured_as_the_product_measures_it() -> None:
    matrix = torch.from_numpy(np.random.default_rng(0).standard_t(4, (256, 192)))
    cell = window_size.by_size(matrix, 128)["64"]
    every, few = (
        st.tail_fit(matrix, st.Spec(window=64, tolerance=tolerance)) for tolerance in (None, 0.02)
    )
    assert cell["alpha"] == pytest.approx(every.alpha, rel=1e-9)
    assert cell["alpha_se"] == pytest.approx(every.alpha_se, rel=1e-9)
    assert cell["few"]["0.02"]["windows"] == few.n_windows
    assert cell["few"]["0.02"]["alpha"] == pytest.approx(few.alpha, rel=1e-9)
    assert np.mean(cell["halves"]) == pytest.approx(every.alpha, rel=0.05)
