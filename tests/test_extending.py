"""Adding something from outside: one type in one file, one line in one table, and everything else follows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import spectail as st
from spectail.cli import run
from spectail.core import cutoffs
from spectail.core.cutoffs import Cutoff, cutoff_forms, parse_cutoff


@dataclass(frozen=True)
class LowerQuarter(Cutoff):
    """A toy: everything but the lowest quarter."""

    text = "quarter"
    summary = "all but the lowest quarter of the eigenvalues"
    meaning = "alpha describes the upper three quarters."

    def start(self, eigenvalues):
        return eigenvalues.size // 4


class TestACutoff:
    @pytest.fixture(autouse=True)
    def registered(self, monkeypatch):
        monkeypatch.setattr(cutoffs, "CUTOFFS", [*cutoffs.CUTOFFS, LowerQuarter])

    def test_is_parsed_and_named(self):
        assert parse_cutoff("quarter") == LowerQuarter()
        assert cutoff_forms(cutoffs.CUTOFFS).endswith("fixed:X or quarter")

    def test_is_measured_with_a_null_and_an_error_bar(self):
        matrix = np.random.default_rng(0).standard_normal((256, 256))
        fit = st.tail_fit(matrix, st.Spec(window=64, cutoff="quarter"))
        start = fit.eigenvalues.size // 4
        tail = fit.eigenvalues[start:]
        assert fit.alpha == pytest.approx(1 + tail.size / np.log(tail / tail[0]).sum())
        assert abs(fit.alpha - fit.alpha_null) < 4 * np.hypot(fit.alpha_se, fit.alpha_null_sd)

    def test_runs_from_the_command_line_to_the_report(self, tmp_path):
        torch.manual_seed(0)
        torch.save(
            {"a.weight": torch.randn(96, 128), "b.weight": torch.randn(128, 96)},
            tmp_path / "model.pt",
        )
        assert (
            run(
                [
                    "analyze",
                    str(tmp_path / "model.pt"),
                    "--out",
                    str(tmp_path / "run"),
                    "--cutoff",
                    "quarter",
                ]
            )
            == 0
        )
        assert (
            "lpha describes the upper three quarters"
            in (tmp_path / "run" / "report.html").read_text()
        )
        assert str(st.Analysis.load(tmp_path / "run").run.spec.cutoff) == "quarter"
