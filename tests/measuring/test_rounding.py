"""What analyze says about quantisation: always ranges, errors of formats if asked for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from spectail.cli import run
from spectail.core.quantisers import Integers, relative_error

STATE = {
    f"model.layers.{i}.{name}.weight": torch.randn(
        64, 256, generator=torch.Generator().manual_seed(10 * i + j)
    )
    * (1 + i)
    for i in range(2)
    for j, name in enumerate(("self_attn.q_proj", "mlp.up_proj"))
} | {"model.layers.0.mlp.gate.weight": torch.ones(8, 256)}


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.safetensors"
    save_file(STATE, path)
    return str(path)


def test_ranges_are_always_measured_and_kept(tmp_path: Path) -> None:
    analysis = st.analyze(STATE, out=tmp_path)
    again = st.Analysis.load(tmp_path)
    assert again.layers == analysis.layers
    for layer in analysis.layers:
        assert layer.rounding == ()
        if layer.status != "ok":
            continue
        weights = STATE[f"{layer.name}.weight"]
        for bits in (2, 3, 4, 8):
            error = relative_error(Integers(bits), weights)
            assert layer.group_range / (12 * (2**bits - 1) ** 2) == pytest.approx(error, rel=0.1)
    assert "group_range" not in analysis.table.columns


def test_a_finished_run_gets_its_errors_without_being_measured_again(
    model: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert run(["analyze", model, "--out", str(out), "--quiet"]) == 0
    before = st.Analysis.load(out)
    assert run(["analyze", model, "--out", str(out), "--quiet", "--quantization-errors"]) == 0
    after = st.Analysis.load(out)
    measured = [layer for layer in after.layers if layer.status == "ok"]
    assert len(measured) == 4
    for layer in measured:
        found = {r.format: r for r in layer.rounding}
        weights = STATE[f"{layer.name}.weight"]
        assert found["int3"].bits == 3.25
        assert found["int3"].error == pytest.approx(relative_error(Integers(3), weights), rel=1e-4)
        assert "q4_k" in found
    # The time of the first measurement is still there: nothing was measured again.
    assert [x.seconds for x in after.layers] == [x.seconds for x in before.layers]
    assert all(x.rounding == () for x in after.layers if x.status != "ok")
    # And a plain run over the folder keeps them.
    assert run(["analyze", model, "--out", str(out), "--quiet"]) == 0
    assert st.Analysis.load(out).layers == after.layers


def test_formats_are_chosen_from_a_folder_without_the_model(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "run", tmp_path / "bits.json"
    run(["analyze", model, "--out", str(out), "--quiet"])
    bits = ["allocate", str(out), "--target", "bits", "--out", str(file), "--missing", "leave"]
    assert run([*bits, "--budget", "4.6", "--choices", "q3_k,q4_k,q6_k"]) == 2
    assert "run spectail analyze with --quantization-errors" in capsys.readouterr().err
    run(["analyze", model, "--out", str(out), "--quiet", "--quantization-errors"])
    Path(model).unlink()
    assert run([*bits, "--budget", "4.6", "--choices", "q3_k,q4_k,q6_k"]) == 0
    stored = json.loads(file.read_text())
    found = {share["name"]: (share["format"], share["value"]) for share in stored["shares"]}
    sizes = {"q3_k": 3.4375, "q4_k": 4.5, "q6_k": 6.5625}
    assert len(found) == 4
    assert all(value == sizes[name] for name, value in found.values())
    assert stored["realised"] <= 4.6
    capsys.readouterr()
    assert run(["export", str(file), "--to", "torchao", "--out", str(tmp_path / "t.txt")]) == 2
    assert "torchao has no format q" in capsys.readouterr().err


def test_widths_need_no_flag(model: str, tmp_path: Path) -> None:
    out, file = tmp_path / "run", tmp_path / "bits.json"
    run(["analyze", model, "--out", str(out), "--quiet"])
    bits = ["allocate", str(out), "--target", "bits", "--out", str(file), "--missing", "leave"]
    assert run([*bits, "--budget", "3.5", "--quiet"]) == 0
    allocation = st.Allocation.load(file)
    assert allocation.settings["error"] == "measured"
    assert allocation.settings["gamma"] == 0.0
    assert allocation.deviations == ()
