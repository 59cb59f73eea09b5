"""``spectail analyze`` over checkpoints: one run each, a page of curves, and a verdict."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from spectail.cli import run
from spectail.cli.checkpoints import labelled
from spectail.errors import RunError
from spectail.report.trajectory_page import trajectory_html
from spectail.results.trajectory import STILL, Drift, Trajectory, drift


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Six checkpoints of one model: q becomes heavier-tailed all the time, k never moves."""
    folder = tmp_path_factory.mktemp("training")
    drawn = torch.Generator().manual_seed(0)
    start = {
        f"model.layers.{b}.self_attn.{kind}_proj.weight": torch.randn(128, 128, generator=drawn)
        for b in range(2)
        for kind in ("q", "k")
    }
    scales = torch.linspace(-1, 1, 128)
    paths = []
    for step in (100, 200, 400, 600, 800, 1000):
        weights = {
            name: w * (scales * step / 1500).exp() if "q_proj" in name else w
            for name, w in start.items()
        }
        path = folder / f"checkpoint-{step}" / "model.safetensors"
        path.parent.mkdir()
        save_file({name: w.contiguous() for name, w in weights.items()}, path)
        paths.append(str(path))
    return paths


def test_runs_curves_and_verdicts(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    # Given in another order: the steps in the names count.
    given = [*checkpoints[3:], *checkpoints[:3]]
    assert run(["analyze", *given, "--out", str(out), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["steps"] == [100, 200, 400, 600, 800, 1000]
    for row in values["layers"]:
        assert row["verdict"] == ("moving" if "q_proj" in row["name"] else "stopped"), row
    assert values["mean"]["change"] < 0
    page = (out / "curves.html").read_text()
    assert "Alpha over training" in page
    assert "Still moving: 2 of 4 layers" in page
    for row in values["layers"]:
        for label, alpha in zip(values["checkpoints"], row["alphas"], strict=True):
            analysis = st.Analysis.load(out / label)
            assert {x.name: x.alpha for x in analysis.layers}[row["name"]] == alpha
    # The same command again measures nothing and writes the same.
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/analysis.json")}
    assert run(["analyze", *checkpoints, "--out", str(out), "--quiet"]) == 0
    assert len(before) == 6


def test_other_windows_are_refused_before_anything_is_measured(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"layers.0.weight": torch.randn(96, 96)}, tmp_path / "other.safetensors")
    arguments = [*checkpoints[:2], str(tmp_path / "other.safetensors"), "--quiet"]
    assert run(["analyze", *arguments, "--out", str(tmp_path / "runs")]) == 2
    assert "in windows of 96" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_wrong_use_is_one_line(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = checkpoints[:2]
    for arguments, words in (
        ([*two, "--json"], "several checkpoints need --out DIR"),
        ([*two, "--out", str(tmp_path / "a"), "--shard", "1/2"], "--shard takes one model"),
        ([two[0], two[0], "--out", str(tmp_path / "b")], "given twice"),
    ):
        assert run(["analyze", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.strip().splitlines()) == 1
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "curves.html").write_text("mine")
    assert run(["analyze", *two, "--out", str(tmp_path / "c"), "--quiet"]) == 2
    assert (tmp_path / "c" / "curves.html").read_text() == "mine"


def test_other_models_and_settings_do_not_make_a_trajectory() -> None:
    weights = {"a.weight": torch.randn(64, 64), "b.weight": torch.randn(64, 64)}
    first = st.analyze(weights)
    with pytest.raises(RunError, match="at least two"):
        Trajectory.of({"a": first})
    with pytest.raises(RunError, match="give one --window for all"):
        Trajectory.of({"a": first, "b": st.analyze(weights, spec=st.Spec(window=32))})
    change = st.analyze(weights, base={name: w / 2 for name, w in weights.items()})
    with pytest.raises(RunError, match="one run measured the weights and one their change"):
        Trajectory.of({"a": first, "b": change})
    other = st.analyze({"c.weight": torch.randn(64, 64)})
    with pytest.raises(RunError, match="checkpoints of one model"):
        Trajectory.of({"a": first, "b": other})


def test_an_order_that_no_number_gives_is_told() -> None:
    """A shell puts checkpoint-1000 before checkpoint-500, and final has no number."""
    found = st.analyze({"a.weight": torch.randn(64, 64)})
    labels = ("checkpoint-1000", "checkpoint-500", "final")
    runs = dict.fromkeys(labels, found)
    curves = Trajectory.of(runs)
    assert curves.labels == labels
    assert "in the order given, from checkpoint-1000 to final" in curves.note
    assert curves.note in trajectory_html(curves)
    numbered = Trajectory.of(dict.fromkeys(labels[:2], found))
    assert numbered.labels == (labels[1], labels[0])
    assert not numbered.note


def test_a_layer_that_was_measured_without_an_alpha_makes_no_mean_nan() -> None:
    found = st.analyze({"a.weight": torch.randn(64, 64), "b.weight": torch.randn(64, 64)})
    without = replace(found, layers=(replace(found.layers[0], alpha=math.nan), found.layers[1]))
    curves = Trajectory.of({"1": found, "2": without})
    assert (curves.layers, curves.left_out) == (("b",), ("a",))
    assert np.isfinite(curves.mean()).all()


def test_what_is_left_out_of_the_curves_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    weights = {name: torch.randn(64, 64, generator=drawn) for name in names}
    first = weights | {names[0]: torch.full((64, 64), torch.nan)}
    last = {name: weights[name] for name in names[:-1]}
    for step, tensors in enumerate((first, weights, last)):
        save_file(tensors, tmp_path / f"step-{step}.safetensors")
    paths = [str(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    # One failed in the first checkpoint, one is not in the last.
    assert run(["analyze", *paths, "--out", str(tmp_path / "runs"), "--json"]) == 1
    told = capsys.readouterr()
    found = json.loads(told.out.splitlines()[-1])
    missing = [name.removesuffix(".weight") for name in (names[0], names[-1])]
    assert found["left_out"] == missing
    assert [row["name"] for row in found["layers"]] == [
        name.removesuffix(".weight") for name in names[1:-1]
    ]
    words = " ".join(told.err.split())
    assert (
        f"left out of the curves: 2 layers without an alpha in every checkpoint: {missing[0]}"
        in words
    )
    page = (tmp_path / "runs" / "curves.html").read_text()
    assert all(f"{name}</code>" in page.split("Left out")[1][:2000] for name in missing)


def test_the_interval_holds_the_true_drift_in_95_of_100_cases() -> None:
    drawn = np.random.default_rng(0)
    steps = np.arange(16.0)
    hits, false_stops, n = 0, 0, 2000
    for _ in range(n):
        values = 2 + 0.01 * steps + 0.02 * drawn.standard_normal(16)
        found = drift(steps.tolist(), values)
        true = 0.01 * (steps[-1] - steps[8])
        hits += abs(found.change - true) <= found.half_width
        false_stops += found.verdict == "stopped"
    assert 0.93 < hits / n < 0.97
    assert true > STILL
    assert false_stops / n < 0.05


def test_few_checkpoints_give_no_verdict() -> None:
    found = drift([1.0, 2.0, 3.0], np.array([2.0, 2.0, 2.0]))
    assert found.verdict == "open"
    assert "too few" in str(found)
    assert Drift(0.001, 0.005, 5).verdict == "stopped"
    assert Drift(0.1, 0.05, 5).verdict == "moving"
    assert Drift(0.03, 0.05, 5).verdict == "open"


def test_labels_are_the_shortest_ends_that_differ() -> None:
    assert list(labelled(["a/x.pt", "a/y.pt"])) == ["x.pt", "y.pt"]
    assert list(labelled(["run1/last.pt", "run2/last.pt"])) == ["run1-last.pt", "run2-last.pt"]
    assert list(labelled(["hf://o/m@1", "hf://o/m@2"])) == ["m_1", "m_2"]
    assert all("/" not in label for label in labelled(["../../x y.pt", "../z.pt"]))
