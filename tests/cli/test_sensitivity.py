"""spectail sensitivity: a file that spectail allocate takes, kills, one line for what is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import spectail as st
from spectail.cli import run
from tests.language import llama, tokenizer, words

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, a text and an analysis of the model."""
    folder = tmp_path_factory.mktemp("sensitivity")
    llama().save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    (folder / "text.txt").write_text(words(300))
    assert run(["analyze", str(folder / "model"), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder


def arguments(inputs: Path, out: Path, *more: str) -> list[str]:
    text = ["--calibration", str(inputs / "text.txt"), "--seq-len", "32"]
    return ["sensitivity", str(inputs / "model"), *text, "--out", str(out), *more]


def test_from_the_model_to_the_widths(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.json"
    assert run(arguments(inputs, out)) == 0
    printed = capsys.readouterr()
    assert "sensitivities of 14 layers (2 x 32 tokens, noise 0.05, seed 0)" in printed.out
    assert f"sensitivities: {out}" in printed.out
    found = st.Sensitivities.load(out)
    model, words_ = st.open_language_model(inputs / "model")
    text = (inputs / "text.txt").read_text()
    ids = st.calibration_tokens(words_, text, samples=2, seq_len=32, model=model)
    assert dict(found) == dict(st.sensitivities(model, ids))
    bits = ["--target", "bits", "--budget", "3", "--missing", "mean", "--sensitivities", str(out)]
    for extra, name in (([], "a.json"), (["--choices", "2,3,4"], "b.json")):
        command = ["allocate", str(inputs / "run"), *bits, *extra, "--out", str(tmp_path / name)]
        assert run(command) == 0
    printed = capsys.readouterr()
    assert "sensitivities 2 x 32 tokens, noise 0.05, seed 0" in printed.out
    widths = st.Allocation.load(tmp_path / "a.json")
    analysis = st.Analysis.load(inputs / "run")
    wanted = st.allocate(
        analysis, target="bits", budget=3, missing="mean", sensitivities=dict(found)
    )
    assert dict(widths) == dict(wanted)
    assert widths.realised <= 3


def test_the_same_command_again_measures_nothing_and_fresh_measures_anew(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s.json"
    assert run(arguments(inputs, out, "--quiet")) == 0
    before = out.read_text()
    stored = json.loads(before)
    # A wrong number shows whether it is measured again.
    stored["layers"][3]["value"] = 77.0
    out.write_text(json.dumps(stored, indent=1))
    assert run(arguments(inputs, out, "--quiet")) == 0
    assert json.loads(out.read_text()) == stored
    assert run(arguments(inputs, out, "--quiet", "--fresh")) == 0
    assert out.read_text() == before


SLOWLY = """
import signal
import sys, time
from spectail.sensitivity import measure
from spectail.cli import main
inner, done = measure.sensitivity_of, []
def slowly(*given, **named):
    done.append(named)
    time.sleep(600 if len(done) > 5 else 0)
    return inner(*given, **named)
measure.sensitivity_of = slowly
measure.SAVED_EVERY = 0.0
# A shell that runs the tests in the background makes its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
main(sys.argv[1:])
"""
"""The command, which waits in the middle to be stopped."""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda x: x.name)
def test_a_killed_command_goes_on(inputs: Path, tmp_path: Path, how: signal.Signals) -> None:
    whole, out = tmp_path / "whole.json", tmp_path / "s.json"
    assert run(arguments(inputs, whole, "--quiet")) == 0
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *arguments(inputs, out, "--quiet")],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if out.exists() and len(st.Sensitivities.load(out, unfinished=True)) > 3:
            break
        time.sleep(0.05)
    os.kill(process.pid, how)
    said = process.communicate()[1]
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert said == "interrupted; the same command goes on where it stopped\n"
    stopped = st.Sensitivities.load(out, unfinished=True)
    assert 3 < len(stopped) < 14
    assert run(arguments(inputs, out, "--quiet")) == 0
    assert out.read_text() == whole.read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "0"], "samples must be a whole number of at least 1, not 0"),
        (["--noise", "-1"], "noise must be a number from 0.0001 to 1, not -1.0"),
        (["--noise", "1e-9"], "noise must be a number from 0.0001 to 1, not 1e-09"),
        (["--noise", "0.001", "--dtype", "bfloat16"], "noise of 0.001 is lost in the rounding"),
        (["--seed", "99999999999999999999"], "seed must be a whole number from 0 to 9223372036"),
        (["--bos", "twice"], "bos must be one of"),
        (["--exclude", "nothing"], "exclude 'nothing' matches none of the"),
        (["--kind", "z"], "z"),
        (["--calibration", "none.txt"], "none.txt"),
        (["--device", "abacus"], "abacus"),
        (["--dtype", "int3"], "dtype must be one of auto, float32, bfloat16, float16, not 'int3'"),
        (["--seq-len", "1000"], "the calibration text has 300 tokens, and one sequence takes 1000"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_bad_input_is_one_line(
    inputs: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(inputs, tmp_path / "s.json", "--quiet", *more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("spectail: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "more",
    [["--samples", "0"], ["--seq-len", "0"], ["--noise", "2"], ["--seed", "-1"]],
    ids=lambda x: x[0],
)
@pytest.mark.parametrize("name", ["sensitivity", "prune"])
def test_numbers_are_refused_before_the_model_is_loaded(
    name: str, more: list[str], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [name, "no/such/model", "--calibration", str(inputs / "text.txt"), *more]
    if name == "prune":
        if more[0] == "--noise":
            pytest.skip("prune draws none")
        command += ["--sparsity", "0.5"]
    assert run([*command, "--out", str(tmp_path / "s.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{more[0][2:].replace('-', '_')} must be a" in line


def test_sensitivities_of_another_model_or_unfinished_ones_are_refused(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s.json"
    assert run(arguments(inputs, out, "--quiet")) == 0
    bits = ["--target", "bits", "--budget", "3", "--missing", "mean", "--sensitivities", str(out)]
    command = ["allocate", str(inputs / "run"), *bits, "--out", str(tmp_path / "a.json")]
    stored = json.loads(out.read_text())
    name = stored["layers"][2]["name"]
    for change, message in (
        ({"rows": 7}, f"{name} is "),
        ({"name": "elsewhere"}, f"1 of 14 layers have no sensitivity: {name}; "),
        ({"value": None}, "holds 13 of 14 sensitivities: run the same spectail sensitivity comm"),
    ):
        layers = [x | (change if x["name"] == name else {}) for x in stored["layers"]]
        out.write_text(json.dumps(stored | {"layers": layers}))
        assert run(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert not (tmp_path / "a.json").exists()
