"""The command line with ``--device``: the results of the CPU, and one line for a wrong device."""

import importlib
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from spectail.cli import run
from spectail.evaluation import perplexity
from spectail.models.live.language import open_language_model
from tests.conftest import weights
from tests.cuda.device import DEVICE, compare, needs_device, needs_gpu
from tests.pruning.models import decoder

transformers = pytest.importorskip("transformers")
evaluate = importlib.import_module("spectail.cli.evaluate")
pytestmark = needs_device
WORDS = [f"w{i}" for i in range(90)]
TEXT = " ".join(WORDS[(7 * i * i + i) % 90] for i in range(500))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer of whole words, and a text."""
    path = tmp_path_factory.mktemp("cuda") / "model"
    decoder("llama").save_pretrained(path)
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {word: i + 3 for i, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(
        path
    )
    (path.parent / "text.txt").write_text(TEXT)
    other = " ".join(WORDS[(5 * i * i + 3 * i + 11) % 89] for i in range(300))
    (path.parent / "other.txt").write_text(other)
    return path


def test_analyze(tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    save_file(weights(), path)
    for name, device in (("here", DEVICE), ("cpu", "cpu"), ("auto", "auto")):
        out = str(tmp_path / name)
        assert run(["analyze", str(path), "--device", device, "--out", out, "--traps"]) == 0
    tables = [pd.read_csv(next((tmp_path / name).glob("*.csv"))) for name in ("here", "cpu")]
    compare(*tables)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_prune(folder: Path, tmp_path: Path, method: str) -> None:
    zeros = []
    text = str(folder.parent / "text.txt")
    for name, device in (("here", DEVICE), ("cpu", "cpu")):
        out = tmp_path / name
        arguments = [
            "prune", str(folder), "--out", str(out), "--sparsity", "0.5", "--method", method,
            "--allocation", "owl", "--calibration", text, "--seq-len", "16", "--evaluate",
            str(folder.parent / "other.txt"),
            "--device", device,
        ]  # fmt: skip
        assert run(arguments) == 0
        model, _ = open_language_model(out)
        zeros.append(sum(int((p == 0).sum()) for p in model.parameters() if p.ndim > 1))
    assert zeros[0] == zeros[1] > 0


def test_eps_is_chosen(folder: Path, tmp_path: Path) -> None:
    text = str(folder.parent / "text.txt")
    arguments = [
        "prune", str(folder), "--out", str(tmp_path / "out"), "--sparsity", "0.5", "--method",
        "wanda", "--allocation", "owl", "--eps", "auto", "--calibration", text, "--seq-len", "16",
        "--device", DEVICE,
    ]  # fmt: skip
    assert run(arguments) == 0


def test_evaluate(folder: Path, tmp_path: Path) -> None:
    found = []
    for name, device in (("here", DEVICE), ("cpu", "cpu")):
        out = tmp_path / f"{name}.json"
        arguments = [
            "evaluate", str(folder), "--text", str(folder.parent / "text.txt"), "--seq-len", "32",
            "--out", str(out), "--device", device,
        ]  # fmt: skip
        assert run(arguments) == 0
        found.append(json.loads(out.read_text()))
    assert found[0]["perplexity"] == pytest.approx(found[1]["perplexity"], rel=1e-4)
    model, tokenizer = open_language_model(folder, "bfloat16", DEVICE)
    assert perplexity(model, tokenizer, TEXT, seq_len=32, batch_size=4) == pytest.approx(
        found[1]["perplexity"], rel=0.1
    )


@needs_gpu
@pytest.mark.parametrize("command", ["analyze", "prune", "evaluate"])
@pytest.mark.parametrize("device", ["cuda:97", "meta", "gpu"])
def test_a_device_that_does_not_exist_is_one_line(
    command: str, device: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = {
        "analyze": ["--out", str(tmp_path / "out")],
        "prune": ["--out", str(tmp_path / "out"), "--sparsity", "0.5", "--method", "magnitude"],
        "evaluate": ["--text", str(folder.parent / "text.txt"), "--seq-len", "32"],
    }
    assert run([command, str(folder), *more[command], "--device", device]) == 2
    told = capfd.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert told[0].startswith(f"spectail: device must be auto, cpu or an accelerator that torch has"
                              f" here, not {device!r}")  # fmt: skip
    assert torch.ones(1, device=DEVICE).item() == 1  # the GPU still works


@needs_gpu
def test_too_little_memory_is_one_line(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object) -> object:
        return torch.empty(2**50, device=DEVICE)

    monkeypatch.setattr(evaluate, "open_language_model", too_large)
    text = str(folder.parent / "text.txt")
    assert run(["evaluate", str(folder), "--text", text, "--device", DEVICE]) == 2
    told = capfd.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert told[0].startswith("spectail: CUDA out of memory. Tried to allocate")
    assert told[0].endswith(": use --device cpu or a smaller batch")
