"""Shards: the split, the parts that processes leave in one folder, and their merge."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import save_file

import spectail as st
from spectail.cli import run
from spectail.measuring.shards import Shard, split
from tests.conftest import weights


def _measure(source: Path, out: Path, count: int, **options: Any) -> None:
    for number in range(1, count + 1):
        st.analyze(source, out=out, shard=(number, count), **options)


def _without_seconds(path: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(path.read_text())
    for layer in stored["layers"]:
        del layer["seconds"]
    return stored


@pytest.mark.parametrize("count", [3, 15])
def test_parts_merge_to_the_run_of_one_process(
    checkpoint: Path, tmp_path: Path, count: int
) -> None:
    # 15 shards of 13 layers: some parts are empty.
    st.analyze(checkpoint, out=tmp_path / "whole", full_spectrum=True)
    _measure(checkpoint, tmp_path / "run", count, full_spectrum=True)
    merged = st.merge(tmp_path / "run")
    lines = [
        [line.split(",") for line in (tmp_path / name / "layers.csv").read_text().splitlines()]
        for name in ("whole", "run")
    ]
    seconds = lines[0][0].index("seconds")
    for rows in lines:
        for row in rows[1:]:
            row[seconds] = ""
    assert lines[0] == lines[1], "the same text but for the seconds"
    one, many = (
        pd.read_parquet(tmp_path / name / "layers.parquet").drop(columns="seconds")
        for name in ("whole", "run")
    )
    pd.testing.assert_frame_equal(one, many)
    whole, of_parts = (
        _without_seconds(tmp_path / name / "analysis.json") for name in ("whole", "run")
    )
    assert whole == of_parts
    assert (tmp_path / "run" / "report.html").exists()
    pd.testing.assert_frame_equal(merged.table, st.Analysis.load(tmp_path / "run").table)


def test_a_shard_without_a_folder_returns_its_rows(checkpoint: Path) -> None:
    parts = [st.analyze(checkpoint, shard=f"{number}/3") for number in (1, 2, 3)]
    whole = st.analyze(checkpoint)
    names = [name for part in parts for name in part.table["name"]]
    assert sorted(names) == sorted(whole.table["name"])
    assert {part.run.window for part in parts} == {whole.run.window}, "the window of the whole run"


def test_the_split_is_by_cost_and_not_by_count() -> None:
    rng = np.random.default_rng(0)
    seconds = [float(x) for x in rng.lognormal(0, 2, 200)]
    for count in (2, 3, 7):
        shards = split(seconds, count)
        assert sorted(place for shard in shards for place in shard) == list(range(200))
        loads = [sum(seconds[place] for place in shard) for shard in shards]
        # Graham's bound, against the least that any split could reach.
        assert max(loads) <= 4 / 3 * max(sum(seconds) / count, max(seconds))
    # Two layers that cost as much as all others together.
    assert split([1, 1, 1, 1, 4, 4], 3) == [[4], [5], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("0/4", "shards are counted from 1: 1/4 to 4/4, not 0/4"),
        ("5/4", "1/4 to 4/4, not 5/4"),
        ((0, 2), "not 0/2"),
        ("1/0", "a run has 1 to 100,000 shards"),
        ("1/100001", "a run has 1 to 100,000 shards"),
        ("2", "shard must be I/N, such as 1/4"),
        ("-1/4", "shard must be I/N"),
        ("1/4/2", "shard must be I/N"),
        ("1/" + "9" * 5000, "shard must be I/N"),
        ("a/b", "not 'a/b'"),
    ],
)
def test_a_shard_that_is_none_is_refused(given: Any, words: str) -> None:
    with pytest.raises(st.SpecError) as error:
        Shard.of(given)
    assert words in str(error.value)


def test_missing_parts_and_unfinished_layers_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A run that is stopped finishes the layers that its threads have begun, and some are left.
    checkpoint = tmp_path / "large.safetensors"
    save_file(weights(blocks=2 * (os.cpu_count() or 1) + 8), checkpoint)
    out = tmp_path / "run"
    with pytest.raises(st.RunError, match=r"no parts of a run in .*run"):
        st.merge(out)
    st.analyze(checkpoint, out=out, shard="1/4")

    def stop(layer: Any, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        st.analyze(checkpoint, out=out, shard="3/4", progress=stop)
    third = st.analyze(checkpoint, shard="3/4").table["name"].tolist()
    journal = (out / "part-3-of-4" / ".progress.jsonl").read_text()
    done = [name for name in third if f'"name": "{name}"' in journal]
    assert 0 < len(done) < len(third)
    assert run(["merge", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "parts 2, 4 of 4 missing" in message
    assert f"part 3 of 4 lacks {len(third) - len(done)} layer" in message
    assert all((name in message) == (name not in done) for name in third)
    assert "--shard 2/4, --shard 4/4" in message
    assert not (out / "layers.csv").exists()
    for number in (2, 3, 4):
        st.analyze(checkpoint, out=out, shard=(number, 4))
    assert run(["merge", str(out), "--quiet"]) == 0
    merged = st.Analysis.load(out).table.drop(columns="seconds")
    pd.testing.assert_frame_equal(merged, st.analyze(checkpoint).table.drop(columns="seconds"))


def test_a_part_that_was_killed_before_it_was_finished_is_named(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of its layers are in the journal, and none in an analysis."""
    st.analyze(checkpoint, out=tmp_path, shard="2/2")
    with monkeypatch.context() as killed:
        killed.setattr(st.Analysis, "save", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            st.analyze(checkpoint, out=tmp_path, shard="1/2")
    assert run(["merge", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "part 1 of 2 was stopped before its tables were written" in message
    assert "Run spectail analyze again with --shard 1/2" in message
    st.analyze(checkpoint, out=tmp_path, shard="1/2")
    assert run(["merge", str(tmp_path), "--quiet"]) == 0


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_parts_with_and_without_quantization_errors_do_not_merge(
    checkpoint: Path, tmp_path: Path
) -> None:
    st.analyze(checkpoint, out=tmp_path, shard="1/2", quantization_errors=True)
    st.analyze(checkpoint, out=tmp_path, shard="2/2")
    with pytest.raises(
        st.RunError, match=r"1-of-2 holds quantization errors and .*2-of-2 none: measure the parts"
    ):
        st.merge(tmp_path)
    st.analyze(checkpoint, out=tmp_path, shard="2/2", quantization_errors=True)
    merged = st.merge(tmp_path)
    assert all(bool(layer.rounding) == (layer.status == "ok") for layer in merged.layers)


def test_a_part_is_no_folder_for_the_whole_run(checkpoint: Path, tmp_path: Path) -> None:
    _measure(checkpoint, tmp_path, 2)
    part = tmp_path / "part-1-of-2"
    before = (part / "analysis.json").read_bytes()
    for out in (part, part / ".." / part.name):
        with pytest.raises(st.RunError, match=r"holds a part: give --out another folder"):
            st.merge(tmp_path, out=out)
    assert (part / "analysis.json").read_bytes() == before


def test_parts_of_another_model_or_settings_are_refused_at_once(
    checkpoint: Path, tmp_path: Path
) -> None:
    save_file(weights(seed=1), tmp_path / "other.safetensors")
    out = tmp_path / "run"
    st.analyze(checkpoint, out=out, shard="1/2")
    with pytest.raises(st.RunError, match="holds results of another model"):
        st.analyze(tmp_path / "other.safetensors", out=out, shard="2/2")
    with pytest.raises(st.RunError, match="holds results of other settings"):
        st.analyze(checkpoint, out=out, shard="2/2", spec=st.Spec(cutoff="top:0.1"))
    with pytest.raises(st.RunError, match="holds part 1 of 2, and this is part 2 of 3"):
        st.analyze(checkpoint, out=out, shard="2/3")
    assert [path.name for path in out.iterdir()] == ["part-1-of-2"]


def test_merge_refuses_parts_of_different_runs(checkpoint: Path, tmp_path: Path) -> None:
    save_file(weights(seed=1), tmp_path / "other.safetensors")
    a, b, c, d = (tmp_path / name for name in "abcd")
    st.analyze(checkpoint, out=a, shard="1/2")
    st.analyze(tmp_path / "other.safetensors", out=b, shard="2/2")
    st.analyze(checkpoint, out=c, shard="2/2", exclude=["*embed*"])
    st.analyze(checkpoint, out=d, shard="2/3")
    for other, words in (
        (b, r"parts of runs of different models \(fingerprint\)"),
        (c, r"different settings \(exclude\)"),
        (d, "different splits"),
    ):
        with pytest.raises(st.RunError, match=words):
            st.merge(a, other, out=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_parts_in_several_folders_merge_into_another(checkpoint: Path, tmp_path: Path) -> None:
    whole = st.analyze(checkpoint)
    for number in (1, 2):
        st.analyze(checkpoint, out=tmp_path / f"machine{number}", shard=(number, 2))
    folders = [tmp_path / "machine1", tmp_path / "machine2" / "part-2-of-2"]
    with pytest.raises(st.RunError, match="need --out"):
        st.merge(*folders)
    arguments = ["merge", *map(str, folders), "--out", str(tmp_path / "merged"), "--quiet"]
    assert run(arguments) == 0
    merged = st.Analysis.load(tmp_path / "merged")
    pd.testing.assert_frame_equal(
        merged.table.drop(columns="seconds"), whole.table.drop(columns="seconds")
    )


def _changed(part: Path, **values: Any) -> str:
    """Change the first layer in the results of a part; return its name."""
    stored = json.loads((part / "analysis.json").read_text())
    stored["layers"][0] |= values
    (part / "analysis.json").write_text(json.dumps(stored))
    return str(stored["layers"][0]["name"])


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_of_a_part_that_is_there_twice_the_better_rows_count(
    checkpoint: Path, tmp_path: Path, order: tuple[str, str]
) -> None:
    _measure(checkpoint, tmp_path / "one", 3)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    # As a machine leaves them that has too little memory, that was killed, and that is slower.
    _changed(tmp_path / "one" / "part-1-of-3", status="failed", alpha=None, reason="no memory")
    (tmp_path / "two" / "part-2-of-3" / "analysis.json").unlink()
    _changed(tmp_path / "two" / "part-3-of-3", seconds=9.0)
    merged = st.merge(*(tmp_path / name for name in order), out=tmp_path / "merged")
    expected = st.analyze(checkpoint).table.drop(columns="seconds")
    pd.testing.assert_frame_equal(merged.table.drop(columns="seconds"), expected)


def test_a_part_that_is_there_twice_with_different_results_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _measure(checkpoint, tmp_path / "one", 3)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    name = _changed(tmp_path / "two" / "part-2-of-3", alpha=9.0)
    arguments = ["merge", str(tmp_path / "one"), str(tmp_path / "two"), "--out"]
    assert run([*arguments, str(tmp_path / "merged")]) == 2
    message = capsys.readouterr().err
    assert f"{tmp_path / 'two' / 'part-2-of-3'} and another part have different results" in message
    assert f"({name})" in message
    assert not (tmp_path / "merged").exists()


def test_two_parts_that_claim_one_place_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    _measure(checkpoint, tmp_path, 2)
    places: list[list[list[Any]]] = []
    for number in (1, 2):
        stored = json.loads((tmp_path / f"part-{number}-of-2" / "shard.json").read_text())
        places.append(stored["layers"])
    # The second part claims a place of the first for a layer of its own.
    places[1].append([places[0][0][0], places[1][0][1]])
    stored["layers"] = places[1]
    (tmp_path / "part-2-of-2" / "shard.json").write_text(json.dumps(stored))
    with pytest.raises(st.RunError, match="have different results for layer"):
        st.merge(tmp_path)


def test_merge_replaces_another_run_only_when_told(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    _measure(checkpoint, tmp_path / "parts", 2)
    st.analyze(checkpoint, out=out, spec=st.Spec(cutoff="top:0.1"))
    with pytest.raises(st.RunError, match="other settings"):
        st.merge(tmp_path / "parts", out=out)
    st.merge(tmp_path / "parts", out=out, fresh=True)
    assert st.Analysis.load(out).run.spec == st.presets.FARMS
    # Once more changes nothing.
    before = (out / "layers.csv").read_bytes()
    st.merge(tmp_path / "parts", out=out)
    assert (out / "layers.csv").read_bytes() == before


def test_a_damaged_part_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    _measure(checkpoint, tmp_path, 2)
    path = tmp_path / "part-1-of-2" / "shard.json"
    whole = path.read_text()
    stored = json.loads(whole)
    damaged: list[Any] = [
        {"shard": [1, 2], "run": 3},
        stored | {"shard": [0, 2]},
        stored | {"shard": [1, 2**62]},
        stored | {"shard": ["1", "2"]},
        stored | {"total": 2**62},
        stored | {"total": -1},
        stored | {"layers": [[0, 1]]},
        stored | {"layers": [[2**62, stored["layers"][0][1]]]},
        stored | {"run": stored["run"] | {"spec": {"cutoff": "nonsense"}}},
        [],
        None,
    ]
    texts = [json.dumps(values) for values in damaged] + ["", "[" * 100_000, whole[:-9], "\ufeff"]
    for text in texts:
        path.write_text(text)
        with pytest.raises(st.RunError) as error:
            st.merge(tmp_path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "layers.csv").exists()
    path.write_text(whole)
    st.merge(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names")
def test_a_pipe_in_place_of_a_part_never_waits(checkpoint: Path, tmp_path: Path) -> None:
    st.analyze(checkpoint, shard="1/2", out=tmp_path)
    (tmp_path / "part-2-of-2").mkdir()
    os.mkfifo(tmp_path / "part-2-of-2" / "shard.json")
    with pytest.raises(st.RunError, match="part 2 of 2 missing"):
        st.merge(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b'{"fingerprint": 1}', b"[]", b"\xff"])
def test_a_damaged_analysis_of_a_part_says_what_to_do(
    checkpoint: Path, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    _measure(checkpoint, tmp_path, 2)
    path = tmp_path / "part-2-of-2" / "analysis.json"
    path.write_bytes(content)
    assert run(["merge", str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert str(path) in line
    assert line.endswith(f"remove {path.parent} and measure this part again with --shard 2/2")
    shutil.rmtree(path.parent)
    again = ["analyze", str(checkpoint), "--out", str(tmp_path), "--quiet", "--shard", "2/2"]
    assert run(again) == 0
    assert run(["merge", str(tmp_path), "--quiet"]) == 0


@pytest.mark.parametrize("fresh", [False, True])
def test_a_shard_file_of_somebody_else_stays(checkpoint: Path, tmp_path: Path, fresh: bool) -> None:
    path = tmp_path / "run" / "part-1-of-2" / "shard.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": 1}')
    with pytest.raises(st.RunError, match=r"shard\.json exists and spectail did not write it"):
        st.analyze(checkpoint, out=tmp_path / "run", shard="1/2", fresh=fresh)
    assert path.read_text() == '{"mine": 1}'
    assert [file.name for file in path.parent.iterdir()] == ["shard.json"]


def test_no_change_of_a_part_raises_anything_else(checkpoint: Path, tmp_path: Path) -> None:
    _measure(checkpoint, tmp_path, 2)
    path = tmp_path / "part-2-of-2" / "shard.json"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            changed[place] = rng.integers(0, 256)
        path.write_bytes(bytes(changed))
        # The other part is missing, so that nothing can be merged.
        with pytest.raises(st.RunError, match=r"\A[^\n]+\Z"):
            st.merge(tmp_path / "part-2-of-2", out=tmp_path / "merged")


def test_a_failed_layer_stays_failed_and_the_exit_code_says_so(tmp_path: Path) -> None:
    state = weights()
    state["model.layers.1.self_attn.q_proj.weight"].zero_()
    save_file(state, tmp_path / "m.safetensors")
    _measure(tmp_path / "m.safetensors", tmp_path / "run", 3)
    assert run(["merge", str(tmp_path / "run"), "--quiet"]) == 1
    table = st.Analysis.load(tmp_path / "run").table.set_index("name")
    assert table.loc["model.layers.1.self_attn.q_proj", "status"] == "failed"


def test_processes_that_run_at_once_leave_parts_that_merge(
    checkpoint: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "spectail", "analyze", str(checkpoint), "--quiet", "--out"]
    # Hashes of texts differ between processes; the split must not depend on them.
    running = [
        subprocess.Popen(
            [*command, str(tmp_path / "run"), "--shard", f"{number}/2"],
            env={**os.environ, "PYTHONHASHSEED": str(number)},
        )
        for number in (1, 2)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    merged = st.merge(tmp_path / "run").table.drop(columns="seconds")
    pd.testing.assert_frame_equal(merged, st.analyze(checkpoint).table.drop(columns="seconds"))
