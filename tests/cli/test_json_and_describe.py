"""``--json`` prints nothing but JSON on standard output; ``describe`` reads headers only."""

from __future__ import annotations

import json
import math
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import spectail as st
from spectail.cli import run
from tests.conftest import weights


def _json(arguments: list[str], capfd: pytest.CaptureFixture[str], code: int = 0) -> Any:
    capfd.readouterr()
    assert run(arguments) == code
    # Descriptors and not sys.stdout: what a library prints would break the JSON too.
    return json.loads(capfd.readouterr().out)


def test_analyze_needs_no_folder(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path.cwd().iterdir())
    found = _json(["analyze", str(checkpoint), "--json"], capfd)
    analysis = st.analyze(checkpoint)
    assert [row["name"] for row in found["layers"]] == list(analysis.table["name"])
    alphas = [math.nan if row["alpha"] is None else row["alpha"] for row in found["layers"]]
    assert alphas == pytest.approx(list(analysis.table["alpha"]), nan_ok=True)
    assert found["summary"] == json.loads(json.dumps(analysis.summary().to_dict()))
    assert found["run"]["spec"] == analysis.run.spec.to_dict()
    assert sorted(Path.cwd().iterdir()) == before


def test_texts_go_to_standard_error(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["analyze", str(checkpoint), "--json"]) == 0
    captured = capfd.readouterr()
    assert "Heaviest tails" in captured.err
    assert captured.out.count("\n") == 1
    assert run(["analyze", str(checkpoint), "--json", "--quiet"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out)["summary"]["counts"]["ok"] == 10


def test_a_folder_is_written_too_if_it_is_given(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    found = _json(["analyze", str(checkpoint), "--json", "--out", str(out)], capfd)
    assert found["run"] == json.loads((out / "analysis.json").read_text())["run"]


def test_a_failed_layer_is_in_the_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_file({"a.weight": torch.full((64, 64), math.nan)}, tmp_path / "m.safetensors")
    found = _json(["analyze", str(tmp_path / "m.safetensors"), "--json"], capfd, code=1)
    assert found["summary"]["failed"] == ["a"]
    assert found["layers"][0]["alpha"] is None


BAD = {
    "no place for the results": (
        [],
        "give --out DIR, a folder for the results, or --json to print them",
    ),
    "a shard": (["--json", "--shard", "1/2"], "--shard needs --out DIR, the folder of the run"),
    "fresh": (["--json", "--fresh"], "--fresh needs --out DIR, the folder of the run"),
    "an unknown kind": (
        ["--json", "--kind", "dense"],
        "--kind 'dense' matches no layer; the kinds here are ",
    ),
    "an unknown type": (["--json", "--type", "q"], "--type 'q' matches no layer; the types here"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_use_is_one_line_and_no_json(
    case: str, checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options, message = BAD[case]
    assert run(["analyze", str(checkpoint), *options]) == 2
    captured = capfd.readouterr()
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_kinds_and_types_on_the_command_line(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kinds = {
        row["kind"]
        for row in _json(["analyze", str(checkpoint), "--json", "--kind", "up,q"], capfd)["layers"]
    }
    assert kinds == {"up", "q"}
    run_folder = tmp_path / "run"
    assert run(["analyze", str(checkpoint), "--out", str(run_folder), "--type", "linear"]) == 0
    page = (run_folder / "report.html").read_text()
    assert "--type linear" in page
    # Another choice is another run.
    assert run(["analyze", str(checkpoint), "--out", str(run_folder), "--kind", "up"]) == 2
    assert "choose another --out, or --fresh" in capfd.readouterr().err


def test_allocate_and_compare(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    a = tmp_path / "a"
    assert run(["analyze", str(checkpoint), "--out", str(a), "--quiet"]) == 0
    words = ["allocate", str(a), "--target", "lr", "--budget", "0.1", "--missing", "leave"]
    stored = _json([*words, "--kind", "up", "--json"], capfd)
    allocation = st.Allocation.from_dict(stored)
    assert allocation
    assert {name.rsplit(".", 1)[-1] for name in allocation} == {"up_proj"}
    assert run(words) == 2
    assert "give --out FILE for the allocation, or --json to print it" in capfd.readouterr().err
    before = sorted(a.iterdir())
    found = _json(["compare", str(a), str(a), "--json"], capfd)
    assert sorted(a.iterdir()) == before, "no page unless it is asked for"
    assert [row["alpha_change"] for row in found["rows"] if row["status"] == "paired"] == [0.0] * 10
    page = tmp_path / "page.html"
    _json(["compare", str(a), str(a), "--json", "--out", str(page)], capfd)
    assert page.exists()


def test_describe_prints_layers_and_estimate(
    checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["describe", str(checkpoint)]) == 0
    text = capfd.readouterr().out
    assert "13 layers" in text
    assert "windows of 64" in text
    assert "estimate: " in text
    assert "skipped: too small" in text
    found = _json(["describe", str(checkpoint), "--json", "--kind", "up"], capfd)
    assert {layer["kind"] for layer in found["layers"]} == {"up"}


@pytest.mark.parametrize("preset", ["farms", "full", "weightwatcher", "tempbalance"])
def test_what_describe_says_is_what_analyze_does(checkpoint: Path, preset: str) -> None:
    spec = st.presets.BY_NAME[preset]
    said = st.describe(checkpoint, spec=spec).table.set_index("name")
    done = st.analyze(checkpoint, spec=spec).table.set_index("name")
    same = ["block", "kind", "rows", "cols", "numel", "status", "window_rows", "window_cols"]
    assert said[[*same, "n_windows"]].equals(done[[*same, "n_windows"]])
    skipped = done["status"] == "skipped"
    assert list(said["reason"][skipped]) == list(done["reason"][skipped])


def test_describe_takes_a_base_as_analyze_does(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = weights(seed=1)
    del base["model.layers.1.self_attn.q_proj.weight"]
    base["model.layers.0.self_attn.q_proj.weight"] = torch.ones(8, 8)
    save_file(base, tmp_path / "base.safetensors")
    arguments = [str(checkpoint), "--base", str(tmp_path / "base.safetensors"), "--json"]
    said = _json(["describe", *arguments], capfd)
    done = _json(["analyze", *arguments], capfd)
    same = ("name", "rows", "cols", "status", "n_windows")
    assert [[x[key] for key in same] for x in said["layers"]] == [
        [x[key] for key in same] for x in done["layers"]
    ]
    skipped = {x["name"]: x["reason"] for x in said["layers"] if x["status"] == "skipped"}
    assert "the base has no layer of this name" in skipped["model.layers.1.self_attn.q_proj"]
    assert "difference is not defined" in skipped["model.layers.0.self_attn.q_proj"]
    assert said["source"].endswith("minus base.safetensors")
    assert run(["describe", str(checkpoint), "--base", str(tmp_path / "none.safetensors")]) == 2
    assert "no such file or folder" in capfd.readouterr().err


def _huge(path: Path, blocks: int = 80) -> int:
    """Write a sparse file with the header of a language model of 70 billion weights."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (32000, 8192),
        "lm_head.weight": (32000, 8192),
    }
    for b in range(blocks):
        shapes |= {
            f"model.layers.{b}.self_attn.q_proj.weight": (8192, 8192),
            f"model.layers.{b}.self_attn.k_proj.weight": (1024, 8192),
            f"model.layers.{b}.self_attn.v_proj.weight": (1024, 8192),
            f"model.layers.{b}.self_attn.o_proj.weight": (8192, 8192),
            f"model.layers.{b}.mlp.gate_proj.weight": (28672, 8192),
            f"model.layers.{b}.mlp.up_proj.weight": (28672, 8192),
            f"model.layers.{b}.mlp.down_proj.weight": (8192, 28672),
            f"model.layers.{b}.input_layernorm.weight": (8192,),
        }
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return end


def test_a_model_of_70_billion_weights_is_described_from_its_header(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    size = _huge(tmp_path / "model.safetensors")
    started = time.perf_counter()
    found = _json(["describe", str(tmp_path / "model.safetensors"), "--json"], capfd)
    # To read 138 GB takes minutes even from memory.
    assert time.perf_counter() - started < 30
    assert found["bytes"] == size - 80 * 2 * 8192
    assert (found["n_layers"], found["n_blocks"], found["n_vectors"]) == (562, 80, 80)
    assert found["window"] == 1024
    q = next(layer for layer in found["layers"] if layer["kind"] == "q")
    assert (q["n_windows"], q["dtype"], q["bytes"]) == (64, "bfloat16", 2 * 8192**2)
    assert found["seconds"] > 600
    assert 2**29 < found["memory"] < 2 * 2**30


def test_describe_reads_no_value_of_a_module() -> None:
    model = nn.Linear(512, 256, device="meta")
    found = st.describe(model)
    assert (len(found.layers), found.numel) == (1, 512 * 256)


def test_describe_and_analyze_refuse_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"nonsense")
    said = []
    for words in (["describe"], ["analyze", "--json"]):
        assert run([words[0], str(tmp_path / "m.safetensors"), *words[1:]]) == 2
        said.append(capfd.readouterr().err)
    assert said[0] == said[1] != ""


def _loud() -> nn.Module:
    """A function of a user's that prints."""
    sys.stdout.write("building the model\n")
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 70))


@pytest.mark.parametrize("command", ["analyze", "describe"])
def test_what_a_model_prints_is_not_in_the_json(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    found = _json([command, f"{__name__}:_loud", "--json"], capfd)
    assert [layer["name"] for layer in found["layers"]] == ["0"]
