"""What each command says to a model or run at another place, or of another form, than it reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spectail.cli import run
from tests.language import llama, tokenizer, words
from tests.models.servers import COMMIT, serve_hub

pytest.importorskip("transformers")

ADDRESSES = {
    "s3://bucket/a/model": "aws s3 cp --recursive s3://bucket/a/model DIR",
    "s3://bucket/my model": "aws s3 cp --recursive 's3://bucket/my model' DIR",
    "s3a://bucket/m": "aws s3 cp --recursive s3://bucket/m DIR",
    "gs://bucket/model": "gcloud storage cp --recursive gs://bucket/model DIR",
    "https://me:secret@host.invalid/m/model.safetensors?sig=secret": "from https://host.invalid/m",
    "https://me:secret@host.invalid/m/?sig=secret": "from https://host.invalid/m",
    "ftp://me:secret@host.invalid/m": "expected hf://, a folder, a .gguf file",
}
"""Addresses that transformers cannot load, and what the message says to do."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a text, a run, its allocation, parts of a run and an unfinished one."""
    folder = tmp_path_factory.mktemp("made")
    llama().save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    (folder / "text.txt").write_text(words(100))
    model, quiet = str(folder / "model"), "--quiet"
    assert run(["analyze", model, "--out", str(folder / "run"), quiet]) == 0
    assert run(["analyze", model, "--shard", "1/2", "--out", str(folder / "parts"), quiet]) == 0
    allocation = ["allocate", str(folder / "run"), "--target", "sparsity", "--budget", "0.5"]
    out = ["--missing", "mean", "--out", str(folder / "allocation.json"), quiet]
    assert run([*allocation, *out]) == 0
    (folder / "unfinished").mkdir()
    line = b'{"holder": {"pid": 1, "host": "a"}, "run": {"fingerprint": "a"}}\n'
    (folder / "unfinished" / ".progress.jsonl").write_bytes(line)
    (folder / "big.gguf").write_bytes(b"GGUF" + bytes(2**20))
    return folder


def command(name: str, source: str, made: Path, out: Path) -> list[str]:
    """A command that takes a language model."""
    text = ["--seq-len", "20", "--quiet"]
    uniform = ["--sparsity", "0.5", "--method", "magnitude", "--allocation", "uniform"]
    to = ["--to", "llm-compressor", "--model", source]
    return {
        "prune": ["prune", source, *uniform, "--out", str(out / "pruned"), "--quiet"],
        "evaluate": ["evaluate", source, "--text", str(made / "text.txt"), *text],
        "export": ["export", str(made / "allocation.json"), *to, "--out", str(out / "r.yaml")],
    }[name]


NAMES = ("prune", "evaluate", "export")


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("name", NAMES)
def test_an_address_that_transformers_cannot_load_is_one_line(
    name: str, address: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(name, address, made, tmp_path)) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert ADDRESSES[address] in line
    assert "secret" not in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("prune", "hf://org/tiny"),
        ("export", "hf://org/tiny"),
        ("evaluate", "hf://org/tiny@main"),
        ("evaluate", f"hf://org/tiny@{COMMIT}"),
    ],
)
def test_a_hub_address_is_fetched_to_the_hubs_cache(
    name: str,
    address: str,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    (tmp_path / "hub" / "org").mkdir(parents=True)
    (tmp_path / "hub" / "org" / "tiny").symlink_to(made / "model")
    with serve_hub(tmp_path / "hub", extra={"X-Repo-Commit": COMMIT}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        out = tmp_path / "out"
        out.mkdir()
        assert run(command(name, address, made, out)) == 0, capsys.readouterr().err
        there = capsys.readouterr().out
        (tmp_path / "here").mkdir()
        assert run(command(name, str(made / "model"), made, tmp_path / "here")) == 0
        here = capsys.readouterr().out
    assert there.replace(str(out), "") == here.replace(str(tmp_path / "here"), "")
    cached = list((tmp_path / "cache" / "models--org--tiny" / "snapshots" / COMMIT).iterdir())
    assert "config.json" in {path.name for path in cached}
    for file in tmp_path.glob("here/*.yaml"):
        assert (out / file.name).read_text() == file.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_hub_out_of_reach_is_one_line_unless_the_cache_has_the_model(
    name: str,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for source in ("org/tiny", "hf://org/tiny@main"):
        assert run(command(name, source, made, tmp_path)) == 2
        [line] = capfd.readouterr().err.strip().splitlines()
        assert "hf://org/tiny" in line
        assert "cannot be read" in line
    cached = tmp_path / "cache" / "models--org--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / COMMIT).symlink_to(made / "model")
    assert run(command(name, "org/tiny", made, tmp_path)) == 0
    assert "Retrying" not in capfd.readouterr().err


def test_a_model_that_the_hub_does_not_know_is_one_line(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    (tmp_path / "hub").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve_hub(tmp_path / "hub") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        assert run(command("evaluate", "org/nothing", made, tmp_path)) == 2
    [line] = capfd.readouterr().err.strip().splitlines()
    assert "there is no model hf://org/nothing on the hub that you may read" in line


@pytest.mark.parametrize(
    "address", ["hf://", "hf://a b/c", "hf://org/name@", "hf://org/na me", "hf://org/name@/folder"]
)
def test_a_hub_address_that_names_no_repository_is_one_line(
    address: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command("evaluate", address, made, tmp_path)) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "expected hf://org/name" in line


RUNS = {
    "https://me:secret@host/m.pt?sig=secret": "spectail analyze https://host/m.pt --out DIR",
    "s3://bucket/model": "spectail analyze s3://bucket/model --out DIR",
    "hf://org/name": "spectail analyze hf://org/name --out DIR",
    "{}/model": "spectail analyze {}/model --out DIR",
    "{}/model/model.safetensors": "spectail analyze {}/model/model.safetensors --out DIR",
    "{}/model/config.json": "is not an analysis that this version can read",
    "{}/big.gguf": "spectail analyze {}/big.gguf --out DIR",
    "{}/parts": "spectail merge {}/parts",
    "{}/unfinished": "run the same spectail analyze command again",
    "{}/nothing": "no finished analysis at {}/nothing",
}
"""What is no finished run, and what the message says."""


@pytest.mark.parametrize("source", RUNS)
@pytest.mark.parametrize("name", ["card", "allocate", "compare"])
def test_what_is_no_run_is_one_line_that_says_what_to_do(
    name: str, source: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = ["--target", "sparsity", "--budget", "0.5", "--out", str(tmp_path / "a.json")]
    arguments = {
        "card": ["--out", str(tmp_path / "card.md")],
        "allocate": budget,
        "compare": [str(made / "run"), "--out", str(tmp_path / "page.html")],
    }[name]
    assert run([name, source.format(made), *arguments]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert RUNS[source].format(made) in line
    assert "secret" not in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["https://me:secret@host/m?sig=secret", "{}/model", "{}/run"])
def test_merge_of_what_holds_no_parts_is_one_line(
    source: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["merge", source.format(made)]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "no parts of a run in" in line
    assert "secret" not in line


def test_a_model_that_is_taken_for_a_run_is_not_read(made: Path, tmp_path: Path) -> None:
    """A file of many gigabytes is no JSON; what tells is its beginning."""
    large = tmp_path / "large.gguf"
    with large.open("wb") as file:
        file.truncate(2**36)
    code = (
        "import resource, sys; from spectail.cli import run; "
        "resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)); "
        f"sys.exit(run(['card', {str(large)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ},
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "is no analysis" in done.stderr
