"""The journal: one run at a time, and only records of the same layers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import spectail as st
from spectail.cli import run
from spectail.measuring.engines import local
from spectail.measuring.journal import JOURNAL_FILE
from spectail.measuring.layer import Plan, measure_layer
from spectail.models.source import Layer

HOLD = """
import sys, time
import spectail as st
def wait(*_):
    print("at work", flush=True)
    time.sleep(60)
st.analyze(sys.argv[1], out=sys.argv[2], progress=wait)
"""


@contextmanager
def another_run(source: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of a run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, source, out], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_run_names_the_first_and_a_kill_releases_the_folder(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["analyze", str(checkpoint), "--out", str(out), "--quiet"]
    with another_run(checkpoint, out) as process:
        before = (out / JOURNAL_FILE).read_bytes()
        for options in ([], ["--fresh"], ["--cutoff", "top:0.2", "--fresh"]):
            assert run(command + options) == 2
            assert capsys.readouterr().err == (
                f"spectail: {out} is in use by process {process.pid} on {socket.gethostname()}; "
                "wait until it has finished, or choose another --out\n"
            )
        assert [path.name for path in out.iterdir()] == [JOURNAL_FILE]
        assert (out / JOURNAL_FILE).read_bytes() == before
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with another_run(checkpoint, out) as process, pytest.raises(st.RunError) as caught:
        st.analyze(checkpoint, out=out)
    assert f"process {process.pid} on" in str(caught.value), "the one that goes on is named"
    assert (out / JOURNAL_FILE).read_bytes().count(b"\n") == 1
    assert run(command) == 0
    assert not (out / JOURNAL_FILE).exists()


def test_of_many_runs_at_once_one_measures_and_the_others_are_refused(
    checkpoint: Path, tmp_path: Path
) -> None:
    start, found, refused = threading.Barrier(6), [], []

    def analyze() -> None:
        start.wait()
        try:
            found.append(st.analyze(checkpoint, out=tmp_path / "run"))
        except st.RunError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=analyze) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) + len(refused) == 6
    assert found
    # The first of them may be locked before it has written its own name.
    assert all(f"{tmp_path / 'run'} is in use by " in text for text in refused)
    whole = st.analyze(checkpoint).table.drop(columns="seconds")
    pd.testing.assert_frame_equal(
        st.Analysis.load(tmp_path / "run").table.drop(columns="seconds"), whole
    )
    assert not (tmp_path / "run" / JOURNAL_FILE).exists()


def during_a_run(source: Path, out: Path, act: Callable[[], object]) -> st.Analysis:
    """Analyze a model, and do something once when the last layer has been measured."""

    def progress(layer: Layer | None, done: float, total: float) -> None:
        if layer is None:
            act()

    return st.analyze(source, out=out, progress=progress)


def test_a_run_whose_folder_was_removed_leaves_another_run_there_alone(
    checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with ExitStack() as stack:

        def begin() -> None:
            shutil.rmtree(out)
            stack.enter_context(another_run(checkpoint, out))

        with pytest.raises(st.RunError) as caught:
            during_a_run(checkpoint, out, begin)
    assert f"{out} was removed while this run went on, and process " in str(caught.value)
    assert [path.name for path in out.iterdir()] == [JOURNAL_FILE]


def test_a_run_whose_folder_was_removed_leaves_other_results_there_alone(
    checkpoint: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "run", st.presets.FULL

    def replace_by_other() -> None:
        shutil.rmtree(out)
        st.analyze(checkpoint, spec=other, out=out)

    with pytest.raises(st.RunError, match=r"holds a run of other settings \(spec"):
        during_a_run(checkpoint, out, replace_by_other)
    assert st.Analysis.load(out).run.spec == other
    # With nothing in its place, the results are written all the same.
    found = during_a_run(checkpoint, tmp_path / "gone", lambda: shutil.rmtree(tmp_path / "gone"))
    assert st.Analysis.load(tmp_path / "gone").layers == found.layers


def test_an_interrupted_run_can_go_on_in_the_same_process(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        st.analyze(checkpoint, out=tmp_path / "run", progress=interrupt)
    st.analyze(checkpoint, out=tmp_path / "run")


def interrupt(layer: Layer | None, done: int, total: int) -> None:
    raise KeyboardInterrupt


class Heads(nn.Module):
    """Fused query, key and value: the number of heads says which rows belong to which."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        config = type("Config", (), {})()
        config.num_attention_heads, config.hidden_size, config.model_type = heads, 128, "gpt_neox"
        config.to_dict = lambda: dict(vars(config))
        self.config = config
        torch.manual_seed(0)
        weight = torch.randn(384, 128) * torch.linspace(0.1, 2, 384)[:, None]
        attention = nn.Module()
        attention.query_key_value = nn.Linear(128, 384)
        with torch.no_grad():
            attention.query_key_value.weight.copy_(weight)
        layer = nn.Module()
        layer.attention = attention
        self.layers = nn.ModuleList([layer])


def alphas(analysis: st.Analysis) -> dict[str, float]:
    return dict(zip(analysis.table["name"], analysis.table["alpha"], strict=True))


@pytest.mark.parametrize("finished", [True, False])
def test_records_of_parts_that_were_cut_otherwise_are_not_taken_back(
    tmp_path: Path, finished: bool
) -> None:
    few, many = (st.analyze(Heads(heads)) for heads in (2, 8))
    assert list(alphas(few)) == list(alphas(many))
    assert few.run.fingerprint == many.run.fingerprint, "the test is about equal tensors"
    assert alphas(few) != alphas(many)
    if finished:
        st.analyze(Heads(2), out=tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            st.analyze(Heads(2), out=tmp_path, progress=at_the_end)
        assert (tmp_path / JOURNAL_FILE).read_bytes().count(b"\n") == 4
    assert alphas(st.analyze(Heads(8), out=tmp_path)) == alphas(many)


def at_the_end(layer: Layer | None, done: int, total: int) -> None:
    if layer is None:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("key", "value"), [("kind", "conv"), ("rows", 95), ("cols", 7), ("numel", 1), ("part", "")]
)
def test_records_of_another_shape_or_kind_are_measured_again(
    checkpoint: Path, tmp_path: Path, key: str, value: Any
) -> None:
    whole = st.analyze(checkpoint)
    with pytest.raises(KeyboardInterrupt):
        st.analyze(checkpoint, out=tmp_path / "run", progress=at_the_end)
    journal = tmp_path / "run" / JOURNAL_FILE
    head, first, *others = journal.read_text().splitlines()
    changed = json.dumps(json.loads(first) | {key: value, "alpha": 99.0})
    journal.write_text("\n".join([head, changed, *others]) + "\n")
    measured: list[Layer | None] = []
    again = st.analyze(
        checkpoint,
        out=tmp_path / "run",
        progress=lambda layer, done, total: measured.append(layer),
    )
    assert [layer and layer.name for layer in measured] == [json.loads(first)["name"], None]
    pd.testing.assert_frame_equal(
        again.table.drop(columns="seconds"), whole.table.drop(columns="seconds")
    )


def test_failed_layers_are_tried_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sometimes(layer: Layer, plan: Plan) -> Any:
        record = measure_layer(layer, plan)
        return replace(record, status="failed") if layer.kind == "q" else record

    monkeypatch.setattr(local, "measure_layer", sometimes)
    broken = st.analyze(checkpoint, out=tmp_path / "run")
    assert (broken.table["status"] == "failed").sum() == 3
    monkeypatch.undo()
    measured: list[Layer | None] = []
    again = st.analyze(
        checkpoint,
        out=tmp_path / "run",
        progress=lambda layer, done, total: measured.append(layer),
    )
    assert [layer.kind for layer in measured if layer] == ["q"] * 3
    assert not (again.table["status"] == "failed").any()


FOREIGN: dict[str, Callable[[Path], Any]] = {
    "layers.csv": lambda path: path.write_text("name,salary\nAnn,5\n"),
    "layers.parquet": lambda path: pd.DataFrame({"a": [1]}).to_parquet(path),
    "report.html": lambda path: path.write_text("<title>my report</title>"),
    "analysis.json": lambda path: path.write_text('{"results": [1, 2]}'),
    ".progress.jsonl": lambda path: path.write_text('{"step": 1, "loss": 2.5}\n'),
    ".progress.jsonl of one line": lambda path: path.with_name(".progress.jsonl").write_text(
        "half of a line"
    ),
    ".progress.jsonl folder": lambda path: path.with_name(".progress.jsonl").mkdir(),
    "report.html folder": lambda path: path.with_name("report.html").mkdir(),
}


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
@pytest.mark.parametrize("name", FOREIGN)
def test_files_of_others_are_never_overwritten(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    fresh: list[str],
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    FOREIGN[name](out / name)
    before = {path: path.is_file() and path.read_bytes() for path in out.iterdir()}
    assert run(["analyze", str(checkpoint), "--out", str(out), *fresh]) == 2
    line = f"{out / name.split()[0]} exists and spectail did not write it, so it stays"
    assert line in capsys.readouterr().err
    if not name.startswith("."):
        with pytest.raises(st.RunError, match="spectail did not write it"):
            st.analyze(checkpoint, include=["*q_proj"]).save(out)
    assert {path: path.is_file() and path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("fresh", [False, True])
def test_files_of_others_beside_a_journal_stay_too(
    checkpoint: Path, tmp_path: Path, fresh: bool
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        st.analyze(checkpoint, out=out, progress=at_the_end)
    (out / "layers.csv").write_text("name,salary\nAnn,5\n")
    with pytest.raises(st.RunError, match="spectail did not write it"):
        st.analyze(checkpoint, out=out, fresh=fresh)
    assert (out / "layers.csv").read_text() == "name,salary\nAnn,5\n"
    assert (out / ".progress.jsonl").stat().st_size > 500


@pytest.mark.parametrize("kept", [0, 5, 100])
def test_a_journal_cut_off_within_its_first_line_is_begun_anew(
    checkpoint: Path, tmp_path: Path, kept: int
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        st.analyze(checkpoint, out=out, progress=at_the_end)
    journal = out / ".progress.jsonl"
    journal.write_bytes(journal.read_bytes()[:kept])
    st.analyze(checkpoint, out=out)
    assert not journal.exists()


def test_a_run_killed_between_two_files_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    st.analyze(checkpoint, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        st.analyze(checkpoint, out=tmp_path / "run", progress=at_the_end)
    for name in ("layers.csv", "layers.parquet"):
        (tmp_path / "run" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    st.analyze(checkpoint, out=tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        p.name for p in (tmp_path / "whole").iterdir()
    }
