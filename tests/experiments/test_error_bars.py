"""The calibration of the error bar, and of the tolerance: do the scripts run,
and do they see a wrong error bar?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import spectail as st
from experiments import common
from experiments.ensembles import LAWS
from experiments.error_bars import __main__ as error_bars
from experiments.tolerance import __main__ as tolerance


@pytest.fixture(autouse=True)
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (error_bars, tolerance):
        monkeypatch.setattr(module, "WORK", tmp_path)


def test_error_bars_run_and_keep_every_setting(tmp_path: Path) -> None:
    error_bars.main(["--quick", "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["environment"]) == set(common.environment())
    assert len(found["results"]) == len(LAWS) * len(error_bars.CUTOFFS) + len(error_bars.CUTOFFS)
    assert set(found["results"]["real | median"]) == {"gate", "up", "down"}


def test_an_error_bar_twice_too_large_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"draws": 20, "seed": 0}
    honest = error_bars.calibrate("gaussian", (96, 96), 32, "median", settings)
    assert 0.5 < honest["ratio"] < 2
    fit = st.tail_fit
    monkeypatch.setattr(
        st,
        "tail_fit",
        lambda *given: (lambda f: replace(f, alpha_se=2 * f.alpha_se))(fit(*given)),
    )
    assert error_bars.calibrate("gaussian", (96, 96), 32, "median", settings)[
        "ratio"
    ] == pytest.approx(2 * honest["ratio"])


def test_tolerance_runs_and_counts_windows(tmp_path: Path) -> None:
    tolerance.main(["--quick", "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert set(found) == {f"drawn 96 | {law}" for law in LAWS}
    for layer in found.values():
        for cell in layer["cutoffs"].values():
            assert 4 <= cell["windows"] <= layer["windows"] == 25
            assert cell["change"] == pytest.approx(cell["alpha_few"] / cell["alpha"] - 1, abs=1e-12)
        assert np.isfinite(layer["cutoffs"]["median"]["times_faster"])
