"""spectail export: a file for every tool, and one line for what is wrong."""

import json
from pathlib import Path

import pytest
import yaml

from spectail.cli import run
from tests.export.conftest import allocation, llama_names, llama_ratios
from tests.language import llama


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """An allocation of sparsity and one of bits, with the folder of a
    model whose weights are not there.
    """
    allocation(llama_ratios()).save(tmp_path / "sparsity.json")
    allocation(dict.fromkeys(llama_names(), 4), "bits").save(tmp_path / "bits.json")
    (tmp_path / "model").mkdir()
    llama().config.save_pretrained(tmp_path / "model")
    return tmp_path


def _export(files: Path, name: str, *options: str) -> int:
    return run(["export", str(files / name), "--out", str(files / "out"), *options])


def test_a_recipe_in_the_models_order(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--to", "llm-compressor", "--model", str(files / "model"), "--method", "sparsegpt")
    assert _export(files, "sparsity.json", *options) == 0
    assert capsys.readouterr().out == f"llm-compressor: {files / 'out'}\n"
    modifiers = yaml.safe_load((files / "out").read_text())["spectail_stage"]["pruning_modifiers"]
    found = modifiers["SparseGPTModifier"]
    assert dict(zip(found["targets"], found["sparsity"], strict=True)) == llama_ratios()
    assert found["targets"] == [
        name for name, _ in llama().named_modules() if name in llama_ratios()
    ]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("bits.json", ["llm-compressor", "--group-size", "32"], "group_size: 32"),
        ("bits.json", ["torchao", "--group-size", "64"], '"group_size": 64'),
        ("bits.json", ["llama.cpp"], "^blk\\.0\\.ffn_down\\.weight$=q4_K\n"),
        ("sparsity.json", ["torch-pruning"], '"model.layers.0.mlp.down_proj": 0.13'),
    ],
)
def test_the_other_tools(
    files: Path, capsys: pytest.CaptureFixture[str], name: str, options: list[str], expected: str
) -> None:
    assert _export(files, name, "--quiet", "--to", *options) == 0
    assert expected in (files / "out").read_text()
    assert capsys.readouterr().out == ""
    if "torch" in options[0]:
        json.loads((files / "out").read_text())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "bits.json",
            ["vllm"],
            "--to must be one of llm-compressor, auto-round, torchao, llama.cpp, torch-pruning, "
            "axolotl, peft, factors, torch, transformers, lightning, not 'vllm'",
        ),
        (
            "sparsity.json",
            ["llm-compressor"],
            "pairs ratios with modules by position: give the model's folder with",
        ),
        (
            "sparsity.json",
            ["llama.cpp"],
            "llama.cpp takes an allocation of bits, but this one is of sparsity",
        ),
        (
            "bits.json",
            ["torch-pruning"],
            "Torch-Pruning takes an allocation of sparsity, but this one is of bits",
        ),
        (
            "bits.json",
            ["torchao", "--method", "rtn"],
            "--method has no effect on torchao for this allocation: leave",
        ),
        (
            "bits.json",
            ["llama.cpp", "--group-size", "8"],
            "--group-size has no effect on llama.cpp for this allocation",
        ),
        (
            "bits.json",
            ["llm-compressor", "--model", "./x"],
            "no such folder: './x'; expected a model folder",
        ),
        ("none.json", ["torchao"], "no allocation at "),
        (
            "bits.json",
            ["llm-compressor", "--option", "modules=x"],
            "--option 'modules=x': give it as --model",
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    files: Path, capsys: pytest.CaptureFixture[str], name: str, options: list[str], message: str
) -> None:
    assert _export(files, name, "--to", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (files / "out").exists()


def test_a_file_that_is_there_stays_unless_forced(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "out").write_text("mine")
    assert _export(files, "bits.json", "--to", "torchao") == 2
    assert "exists, so it stays; give another name, or --force" in capsys.readouterr().err
    assert (files / "out").read_text() == "mine"
    assert _export(files, "bits.json", "--to", "torchao", "--force") == 0
    assert json.loads((files / "out").read_text())["group_size"] == 32
    (files / "out").unlink()
    (files / "out").mkdir()
    assert _export(files, "bits.json", "--to", "torchao", "--force") == 2
    assert f"--out must be a file, and {files / 'out'} is a folder" in capsys.readouterr().err
