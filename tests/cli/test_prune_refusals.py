"""spectail prune refuses what cannot be done before it loads the model or evaluates it."""

from __future__ import annotations

from pathlib import Path

import pytest

import spectail as st
from spectail.cli import run
from spectail.errors import PruneError
from spectail.pruning.allocators import ALLOCATORS, FromFile, Uniform, as_allocator
from tests.pruning.models import decoder

NO_MODEL = "no-such-folder"
"""A model that is not there: only what is checked before it is opened can be told."""


@pytest.fixture
def file(tmp_path: Path) -> str:
    """An allocation of half of the weights."""
    path = tmp_path / "half.json"
    as_allocator("uniform").prepare(decoder("llama"), 0.5)().save(path)
    return str(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparsity", "0.6", "--pattern", "2:4"], "pattern 2:4 is a sparsity of 0.5, the "),
        (
            ["--sparsity", "0.5", "--max-sequences", "0", "--evaluate", "TEST"],
            "max_sequences must be a whole number of at least 1, not 0",
        ),
        (["--sparsity", "0.5", "--pattern", ""], "a pattern is written N:M, such as 2:4, not ''"),
        (["--sparsity", "0.5", "--pattern", f"{'9' * 5000}:4"], "a pattern is written N:M, such"),
        (["--sparsity", "0.5", "--pattern", f"2:{10**30}"], "a pattern is written N:M, such as"),
        (
            ["--sparsity", "0.5", "--pattern", "2:4", "--method", "wanda-variant"],
            "wanda-variant lets rows differ, a pattern does not: use wanda with the pattern",
        ),
        (
            ["--sparsity", "0.999"],
            "depth-kind:first-last prunes at most 0.998 of a layer, so that 0.999 of all weights "
            "is out of reach: use uniform",
        ),
        (["--sparsity", "0.9981", "--allocation", "lamp"], "lamp prunes at most 0.998 of a layer"),
        (["--sparsity", "0.6", "--allocation", "FILE"], "has a sparsity of 0.5, not the 0.6 asked"),
        (["--sparsity", "0.5", "--allocation", "TEXT"], "cannot be used: "),
        (["--sparsity", "0.5", "--allocation", "FOLDER"], "no allocation at "),
        (
            ["--sparsity", "0.5", "--allocation", "FILE", "--kind", "q"],
            "include, exclude, kind and type go with a named allocation",
        ),
    ],
)
def test_before_the_model_is_opened(
    file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("w1 w2")
    (tmp_path / "test.txt").write_text("w3 w4")
    places = {
        "TEST": str(tmp_path / "test.txt"),
        "FILE": file,
        "TEXT": str(text),
        "FOLDER": str(tmp_path),
    }
    words = [places.get(word, word) for word in options]
    if "--method" not in words:
        words += ["--method", "magnitude"]
    words += ["--calibration", str(text)]
    assert run(["prune", NO_MODEL, "--out", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0
    assert len(error) < 400


@pytest.mark.parametrize("name", [rule.name for rule in ALLOCATORS])
def test_a_sparsity_that_a_rule_cannot_have_is_refused_by_it(name: str) -> None:
    rule = as_allocator(name)
    rule.check_budget(0.998)
    if isinstance(rule, Uniform):
        rule.check_budget(0.999)
        return
    with pytest.raises(PruneError, match=rf"^{name} prunes at most 0\.998 of a layer"):
        rule.prepare(decoder("llama"), 0.999)


def test_a_file_may_hold_any_ratio(tmp_path: Path) -> None:
    path = tmp_path / "most.json"
    model = decoder("llama")
    as_allocator("uniform").prepare(model, 0.999)().save(path)
    rule = as_allocator(str(path))
    assert isinstance(rule, FromFile)
    assert st.prune(model, rule.prepare(model, 0.999)()).requested == pytest.approx(0.999)
