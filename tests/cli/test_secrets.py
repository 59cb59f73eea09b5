"""No command prints or stores the user, the password or the query of an address."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from spectail.cli import run
from tests.conftest import weights
from tests.models.servers import serve

ADDRESS = "http://user7:password8@127.0.0.1:1/m?signature9=1"
SECRETS = ("user7", "password8", "signature9")


@pytest.mark.parametrize(
    "command",
    [
        ["analyze", ADDRESS.replace("//", "/"), "--out", "run"],
        ["analyze", ADDRESS.replace("word8", "/word8"), "--out", "run"],
        ["analyze", ADDRESS.replace("http", "ftp"), "--out", "run"],
        ["analyze", ADDRESS.removeprefix("http://").partition("?")[0], "--out", "run"],
        ["analyze", "model.pt", "--out", ADDRESS],
        ["describe", ADDRESS.replace("127.0.0.1:1", "127.0.0.1:x")],
        ["compare", ADDRESS, ADDRESS],
        ["merge", ADDRESS],
        ["card", ADDRESS],
        ["allocate", ADDRESS, "--target", "sparsity", "--budget", "0.5", "--out", "a.json"],
        ["evaluate", "model", "--text", ADDRESS],
        ["evaluate", ADDRESS, "--text", "text.txt"],
        ["prune", "model", "--sparsity", "0.5", "--calibration", ADDRESS, "--out", "p"],
        ["prune", "model", "--sparsity", "0.5", "--allocation", ADDRESS, "--out", "p"],
        ["prune", ADDRESS, "--sparsity", "0.5", "--method", "magnitude", "--out", "p"],
        ["export", ADDRESS, "--to", "llm-compressor", "--out", "r.yaml"],
        ["sensitivity", ADDRESS, ADDRESS, "--out", "s.json"],
    ],
    ids=lambda command: " ".join(command[::2])[:40].replace(ADDRESS, "ADDRESS"),
)
def test_errors_hold_no_secrets(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(weights(), "model.pt")
    Path("text.txt").write_text("a text")
    assert run(command) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("spectail: ")
    assert printed.err.count("\n") == 1
    assert not any(secret in printed.out + printed.err for secret in SECRETS)
    assert not [path for path in tmp_path.rglob("*") if any(x in str(path) for x in SECRETS)]


def test_several_checkpoints_hold_no_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in ("step-10", "step-20"):
        (tmp_path / "site" / step).mkdir(parents=True)
        save_file(weights(seed=len(step)), tmp_path / "site" / step / "model.safetensors")
    with serve(tmp_path / "site") as server:
        place = server.url.replace("//", "//user7:password8@")
        # A slash in a query is no part of the path.
        sources = [
            f"{place}/{step}/model.safetensors?signature9=a/b" for step in ("step-10", "step-20")
        ]
        assert run(["analyze", *sources, "--out", str(tmp_path / "run")]) == 0
        twice = [sources[0], f"{sources[0]}c", "--out", str(tmp_path / "twice")]
        assert run(["analyze", *twice]) == 2
    printed = capsys.readouterr()
    assert "given twice" in printed.err
    assert not any(secret in printed.out + printed.err for secret in SECRETS)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"step-10-model.safetensors", "curves.html"} <= {p.name for p in tmp_path.glob("run/*")}
    for path in files:
        assert not any(secret in str(path) for secret in SECRETS)
        assert not any(secret.encode() in path.read_bytes() for secret in SECRETS)
