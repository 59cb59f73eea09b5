"""spectail allocate: a file from a folder, what it prints, and one line for what is wrong."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import spectail as st
from spectail.cli import run
from tests.allocation.conftest import transformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An analysis of a toy transformer of three blocks, with an embedding and
    routers too small to measure.
    """
    path = tmp_path_factory.mktemp("allocate") / "run"
    results = transformer(3)
    st.Analysis(results.run, results.layers).save(path)
    return path


def _run(folder: Path, tmp_path: Path, *options: str) -> int:
    return run(["allocate", str(folder), "--out", str(tmp_path / "a.json"), *options])


def test_a_sparsity_is_shared_out_written_and_described(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        _run(folder, tmp_path, "--target", "sparsity", "--budget", "0.6", "--map", "linear:0.2")
        == 0
    )
    allocation = st.Allocation.load(tmp_path / "a.json")
    assert abs(allocation.realised - 0.6) < 1e-9
    assert len(allocation) == 6
    assert allocation.settings["map"] == "linear:0.8:1.2"
    output = capsys.readouterr().out
    assert "6 layers in 3 units, 0.4" in output
    assert "mean by number of weights 0.6\n" in output
    assert "left out, an embedding: model.embed_tokens" in output
    assert f"allocation: {tmp_path / 'a.json'}" in output


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--target", "sparsity", "--budget", "0.6", "--bounds", "0.1:0.9", "--level", "layer"],
         {"map": "linear:0.7:1.3", "level": "layer", "bounds": [0.1, 0.9],
          "standardize_by_kind": False, "by": "alpha"}),
        (["--target", "sparsity", "--budget", "0.6", "--standardize-by-kind", "--by", "ends+alpha"],
         {"map": "linear:0.7:1.3", "level": "block", "bounds": [0.0, 0.998],
          "standardize_by_kind": True, "by": "ends+alpha"}),
        (["--target", "bits", "--budget", "3", "--choices", "2,4", "--gamma", "5"],
         {"choices": [2, 4], "error": "measured", "gamma": 5.0, "level": "layer"}),
        (["--target", "lr", "--budget", "0.1", "--map", "tb-sigmoid", "--level", "block",
          "--normalize"],
         {"map": "sigmoid:1.0:1.0:10.0", "level": "block", "normalize": True}),
        (["--target", "weight-decay", "--budget", "0.1"],
         {"map": "linear:0.666:3.0", "level": "layer", "normalize": False}),
        (["--target", "freeze", "--top", "50%", "--by", "alpha-in-kind"],
         {"by": "alpha-in-kind", "level": "layer"}),
        (["--target", "freeze", "--top", "0.25"], {"by": "alpha", "level": "layer"}),
    ],
    ids=lambda x: x[1] if isinstance(x, list) else "",
)  # fmt: skip
def test_options_reach_the_target(
    folder: Path, tmp_path: Path, options: list[str], settings: dict[str, Any]
) -> None:
    assert _run(folder, tmp_path, *options, "--quiet") == 0
    assert json.loads((tmp_path / "a.json").read_text())["settings"] == settings


def test_include_exclude_missing_and_quiet(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--include",
        "lm_head",
        "--include",
        "*.mlp.gate",
        "--exclude",
        "*.0.*",
        "--missing",
        "leave",
        "--quiet",
    ]
    assert _run(folder, tmp_path, "--target", "sparsity", "--budget", "0.5", *options) == 0
    assert capfd.readouterr() == ("", "")
    allocation = st.Allocation.load(tmp_path / "a.json")
    assert len(allocation) == 5
    assert isinstance(allocation.table, pd.DataFrame)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--target", "sparsity", "--budget", "1.5"],
            "a sparsity must be at least 0 and below 1, not 1.5",
        ),
        (
            ["--target", "speed", "--budget", "1"],
            "target must be one of sparsity, bits, lr, weight-decay, freeze, not 'speed'",
        ),
        (
            ["--target", "bits", "--budget", "3", "--map", "sqrt"],
            "target bits takes choices, error, gamma, level, sensitivities, but no map",
        ),
        (["--target", "freeze"], "target freeze needs --top, as --top 25%"),
        (["--target", "lr"], "target lr needs --budget"),
        (["--target", "freeze", "--top", "most"], "--top must be a share like 25% or 0.25, not 'm"),
        (
            ["--target", "lr", "--top", "25%"],
            "--top is the share of layers that target freeze trains: give --budget instead",
        ),
        (
            ["--target", "freeze", "--top", "25%", "--budget", "1"],
            "the share of layers that target freeze trains: give one of --top and --budget",
        ),
        (
            ["--target", "freeze", "--top", "25"],
            "the share of layers to train must be above 0 and at most 1, not 25.0",
        ),
        (
            ["--target", "lr", "--budget", "1", "--bounds", "0:1"],
            "target lr takes map, level, normalize, but no bounds",
        ),
        (
            ["--target", "sparsity", "--budget", ".5", "--bounds", "1"],
            "--bounds must be numbers like 0:0.9, not '1'",
        ),
        (
            ["--target", "bits", "--budget", "3", "--choices", "2,x"],
            "--choices must be widths like 2,3,4,8 or formats like q4_k,q6_k, not '2,x'",
        ),
        (
            ["--target", "bits", "--budget", "3", "--choices", f"2,{'9' * 5000}"],
            "--choices must be widths like 2,3,4,8 or formats like q4_k,q6_k, not '2,999",
        ),
        (
            ["--target", "sparsity", "--budget", ".5", "--by", "variance", "--standardize-by-kind"],
            "standardize_by_kind compares alphas, and by variance looks at none: leave it out",
        ),
        (
            ["--target", "sparsity", "--budget", ".5", "--by", "depth:first", "--missing", "skip"],
            "missing must be one of error, mean, leave, not 'skip'",
        ),
        (
            ["--target", "sparsity", "--budget", ".5", "--kind", ""],
            "a kind or type is a word such as q or conv, not ''",
        ),
        (
            ["--target", "sparsity", "--budget", ".5", "--include", "*.gate"],
            "3 of 9 layers have no comparable alpha: ",
        ),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert _run(folder, tmp_path, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_without_an_analysis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(tmp_path / "none", tmp_path, "--target", "sparsity", "--budget", "0.5") == 2
    assert "no finished analysis at" in capsys.readouterr().err


def test_the_analysis_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "analysis.json").read_bytes()
    out = str(folder / "analysis.json")
    assert (
        run(["allocate", str(folder), "--target", "sparsity", "--budget", "0.5", "--out", out]) == 2
    )
    assert "exists and is no allocation, so it stays" in capsys.readouterr().err
    assert (folder / "analysis.json").read_bytes() == before
