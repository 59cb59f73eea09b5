"""The summary of a run: its means against pandas, its counts, its text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import spectail as st
from spectail.results.summary import METRICS, summarize
from tests.allocation.conftest import layer, results, unmeasured


def _model() -> nn.ModuleDict:
    torch.manual_seed(0)
    layers = {f"layer{i}": nn.Linear(64 + 20 * i, 96) for i in range(4)}
    layers |= {
        "small": nn.Linear(4, 5),
        "own_window": nn.Linear(40, 30),
        "broken": nn.Linear(70, 80),
    }
    with torch.no_grad():
        layers["layer1"].weight *= torch.randn_like(layers["layer1"].weight).exp()
        layers["broken"].weight[0, 0] = math.nan
    return nn.ModuleDict(layers)


def test_means_are_those_of_pandas() -> None:
    analysis = st.analyze(_model(), full_spectrum=True)
    summary = analysis.summary()
    table = analysis.table
    used = table[(table["status"] == "ok") & table["comparable"]]
    assert len(used) == 4
    assert tuple(summary.statistics) == METRICS
    for metric in METRICS:
        found = summary[metric]
        assert found.mean == pytest.approx(used[metric].mean(), rel=1e-12)
        assert found.sd == pytest.approx(used[metric].std(), rel=1e-9)
        assert (found.least, found.greatest) == (used[metric].min(), used[metric].max())
        weighted = (used[metric] * used["numel"]).sum() / used["numel"].sum()
        assert found.weighted_mean == pytest.approx(weighted, rel=1e-12)
        assert found.n == 4
    assert summary["alpha"].mean != pytest.approx(summary["alpha"].weighted_mean, rel=1e-4)


def test_counts_and_what_is_left_out() -> None:
    summary = st.analyze(_model()).summary()
    assert summary.counts == {"ok": 5, "skipped": 1, "failed": 1}
    assert (summary.not_comparable, summary.n_vectors) == (1, 7)
    assert summary.numel == sum(96 * (64 + 20 * i) for i in range(4)) + 40 * 30
    assert summary.failed == ("broken",)
    assert "log_alpha_norm" not in summary.statistics, "it was not asked for"
    text = str(summary)
    assert "5 ok, 1 skipped, 1 failed; 37,296 weights measured; 1 layer not comparable" in text
    assert text.splitlines()[-1] == "failed: broken"


def test_what_stands_out_is_said_in_sentences_without_markdown() -> None:
    summary = st.analyze(_model()).summary()
    assert any("heaviest tail is that of layer1" in text for text in summary.stands_out)
    assert "`" not in str(summary)


def test_plain_means_are_weightwatchers() -> None:
    analysis = st.analyze(_model(), spec=st.presets.WEIGHTWATCHER)
    ok = analysis.table[analysis.table["status"] == "ok"]
    # WeightWatcher averages the rows of all layers that it measures.
    assert analysis.summary()["log_norm"].mean == pytest.approx(np.mean(ok["log_norm"]))
    assert len(ok) == 5


def test_a_summary_is_plain_json() -> None:
    one = summarize(results(layer("a"), unmeasured("b")))
    stored = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert stored["statistics"]["alpha"]["sd"] is None, "one layer has no spread"
    assert stored["counts"] == {"ok": 1, "skipped": 1, "failed": 0}


def test_a_run_without_results_has_no_means() -> None:
    empty = summarize(results(unmeasured("a"), unmeasured("b", "failed", "NaN")))
    assert empty.statistics == {}
    assert "0 weights measured" in str(empty)
    assert "nan" not in str(empty)


def test_reprs_are_a_few_lines(tmp_path: Path) -> None:
    analysis = st.analyze(nn.Sequential(*[nn.Linear(64, 64) for _ in range(40)]))
    assert repr(analysis) == repr(analysis.load(analysis.save(tmp_path / "run").parent))
    assert len(repr(analysis).splitlines()) == 3
    assert repr(analysis).startswith("Analysis of Sequential: 40 ok (windows of 64, median)\n")
    allocation = st.allocate(analysis, target="sparsity", budget=0.5)
    lines = repr(allocation).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("Allocation of sparsity 0.5: 40 layers in 40 units, ")
    nothing = st.analyze(nn.Linear(3, 3))
    assert "1 skipped" in repr(nothing)
