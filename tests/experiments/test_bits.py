"""The bits experiment on a toy model: rules, budgets, and a whole run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import spectail as st
from experiments.bits.__main__ import QUICK, check_same_model, main
from experiments.bits.rules import RULES, WIDTHS, Layers, real_bits, widths
from experiments.bits.subject import Subject
from experiments.bits.summary import tables
from experiments.pruning.toy import toy
from spectail.core.quantisers import Integers


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bits")
    while main(["--quick", "--out", str(folder), "--seconds", "4"]) == 3:
        pass
    return folder / "quick"


def _layers(seed: int = 0, blocks: int = 16) -> Layers:
    rng = np.random.default_rng(seed)
    kinds = ("q", "v", "up", "down") * blocks
    n = len(kinds)
    shapes = tuple({"v": (64, 200), "q": (128, 200)}.get(kind, (300, 256)) for kind in kinds)
    return Layers(
        names=tuple(f"layers.{i // 4}.{kind}" for i, kind in enumerate(kinds)),
        kinds=kinds,
        block=np.arange(n) // 4,
        shapes=shapes,
        variance=rng.lognormal(-6, 0.7, n),
        errors=rng.lognormal(0, 0.1, (n, 1)) * 2.3 / (2.0 ** np.array(WIDTHS) - 1) ** 2,
        alpha=rng.uniform(1.5, 4, n),
        alphaq=rng.uniform(1.5, 4, n),
        sensitivity=rng.lognormal(0, 1, n),
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("budget", [3, 4])
def test_no_rule_is_larger_than_the_uniform_width(rule: str, budget: int) -> None:
    layers = _layers()
    most = sum(Integers(budget).storage(*shape) for shape in layers.shapes)
    for candidate in RULES[rule].candidates:
        found = widths(layers, rule, candidate, budget)
        size = sum(
            Integers(found[name]).storage(*shape)
            for name, shape in zip(layers.names, layers.shapes, strict=True)
        )
        assert size <= most
        # Below by less than one step of the largest layer.
        assert size > most - 300 * 256
        assert real_bits(layers, found) == pytest.approx(size / layers.numel.sum())


def test_every_rule_has_as_many_candidates() -> None:
    fixed = {"uniform", "the default"}
    assert {len(rule.candidates) for name, rule in RULES.items() if name not in fixed} == {3}


def test_the_uniform_rule_is_uniform_and_others_are_not() -> None:
    layers = _layers()
    assert set(widths(layers, "uniform", 0.0, 4).values()) == {4}
    for name in ("relative error", "AlphaQ", "error and noise", "llama.cpp"):
        candidates = RULES[name].candidates
        assert any(len(set(widths(layers, name, c, 4).values())) > 1 for c in candidates)


def test_llama_cpp_favours_the_ends_and_every_third_block() -> None:
    layers = _layers()
    blocks = [int(b) for b in np.unique(layers.block[layers.more_bits])]
    # use_more_bits for 16 blocks: i < 2, i >= 14, and (i - 2) % 3 == 2.
    assert blocks == [0, 1, 4, 7, 10, 13, 14, 15]
    found = widths(layers, "llama.cpp", 2.0, 4)
    favoured = [found[f"layers.{i}.v"] for i in blocks]
    others = [found[f"layers.{i}.v"] for i in range(16) if i not in blocks]
    assert min(favoured) > max(others)


def test_weights_are_rounded_and_come_back() -> None:
    subject = Subject(toy()[0], torch.float32)
    weight, first = subject.weights[3], subject.first[3].clone()
    subject.round_weights({w.name: 3 for w in subject.weights})
    assert torch.equal(weight.read(), Integers(3).dequantised(first))
    subject.restore()
    assert torch.equal(weight.read(), first)


def test_sensitivities_are_those_of_the_library(quick: Path) -> None:
    (journal,) = (path for path in quick.glob("*.jsonl"))
    steps = dict(json.loads(line) for line in journal.read_text().splitlines()[1:])
    found = {
        name: value
        for key, part in steps.items()
        if key.startswith("noise")
        for name, value in part.items()
    }
    model, tokenizer, texts = toy()
    samples, seq_len = QUICK.noise_tokens
    ids = st.calibration_tokens(
        tokenizer, texts.calibration, samples=samples, seq_len=seq_len, model=model
    )
    assert found == pytest.approx(dict(st.sensitivities(model, ids, noise=QUICK.noise)), rel=1e-4)


def test_a_quick_run_is_complete_and_consistent(quick: Path) -> None:
    results = json.loads((quick / "results.json").read_text())
    (found,) = results["models"].values()
    assert set(found["sizes"]) == {"3", "4"}
    for budget, rows in found["sizes"].items():
        assert set(rows) == set(RULES)
        assert rows["uniform"]["widths"][budget] == 28
        for row in rows.values():
            assert len(row["tests"]) == 2
            assert row["bits"] <= rows["uniform"]["bits"]
    text = (quick / "tables.md").read_text()
    assert "| relative error | " in text
    assert "not run yet" not in text


def test_a_journal_of_another_model_is_refused(quick: Path) -> None:
    (path,) = (path for path in quick.glob("*.jsonl"))
    known = dict(json.loads(line) for line in path.read_text().splitlines()[1:])["layers"]
    subject = Subject(toy()[0], torch.float32)
    check_same_model(path, known, subject)
    check_same_model(path, None, subject)
    with torch.no_grad():
        subject.first[5] *= 1.01
    with pytest.raises(ValueError, match="a run with another model; give this one another --name"):
        check_same_model(path, known, subject)
    del known[next(iter(known))]
    with pytest.raises(ValueError, match="a run with another model"):
        check_same_model(path, known, Subject(toy()[0], torch.float32))


def test_what_was_not_run_is_named(quick: Path) -> None:
    results = json.loads((quick / "results.json").read_text())
    (found,) = results["models"].values()
    del found["sizes"]["4"]["AlphaQ"]
    text = tables({"toy": found})["results"]
    assert text.count("not run yet") == 1
