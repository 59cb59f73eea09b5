"""The rules of the comparison: budgets, and that they are those of the product."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.allocation import __main__ as command
from experiments.allocation import opening, profiles, steps, summary
from experiments.allocation.opening import JOURNALS, check_same_model
from experiments.allocation.rules import (
    ACTIVATIONS,
    FIXED,
    RULES,
    SPECS,
    WITHOUT_EPS,
    Layer,
    Measured,
    keep_ends,
    keep_first,
    ratios,
    residual,
    smoothed,
)
from experiments.allocation.steps import Settings, chosen, finalists, select_key
from experiments.allocation.subjects import MODELS, Subject, distance
from experiments.common import steps_in
from experiments.pruning.toy import toy
from spectail.pruning.allocators import as_allocator

SHAPES = {"q": (64, 64), "v": (16, 64), "up": (160, 64), "down": (64, 160)}


@pytest.fixture
def measured() -> Measured:
    """Seven blocks with numbers at random."""
    rng = np.random.default_rng(0)
    layers = tuple(
        Layer(f"layers.{b}.{kind}", f"layers.{b}", kind, *shape)
        for b in range(7)
        for kind, shape in SHAPES.items()
    )
    names, units = [layer.name for layer in layers], [f"layers.{b}" for b in range(7)]
    return Measured(
        layers,
        {spec: dict(zip(names, rng.uniform(1.5, 5, len(names)), strict=True)) for spec in SPECS},
        dict(zip(names, rng.uniform(0.01, 1, len(names)), strict=True)),
        {name: dict(zip(units, rng.uniform(0, 3, 7), strict=True)) for name in ACTIVATIONS},
        {name: dict.fromkeys(names, 0.6) for name in FIXED},
    )


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_meets_the_budget_within_bounds(rule: str, measured: Measured) -> None:
    numel = np.array([layer.numel for layer in measured.layers], dtype=float)
    for eps in (None,) if rule in WITHOUT_EPS else (0.1, 0.6, 1.0):
        found = np.array(list(ratios(rule, eps, 0.6, measured).values()))
        assert found @ numel / numel.sum() == pytest.approx(0.6, abs=1e-9)
        assert found.min() >= 0
        assert found.max() <= 0.998 + 1e-12


def test_rules_are_those_of_the_product() -> None:
    model, _, _ = toy()
    tokens = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(1))
    subject = Subject(model)
    seen = subject.statistics(tokens)
    layers = subject.layers()
    found = Measured(
        layers,
        {spec: subject.alphas(SPECS[spec]) for spec in SPECS},
        subject.variances(),
        subject.activations(seen),
        subject.fixed(0.5),
    )
    same = {
        **{name: name for name in (*ACTIVATIONS, *FIXED, "er", "uniform")},
        "depth: first-last": "depth:first-last",
        "first, offsets": "depth-kind:first",
        "FARMS default": "farms",
        "farms-tail": "farms-tail",
        "AlphaPruning": "alphapruning",
    }
    for rule, name in same.items():
        make = as_allocator(name).prepare(model, 0.5, calibration=tokens)
        expected = dict(make(0.3 if make.settings else None))
        assert ratios(rule, 0.3, 0.5, found) == pytest.approx(expected, abs=2e-5), rule


def test_what_is_kept_and_what_is_left_over() -> None:
    values = np.array([9.0, 1.0, 3.0, 2.0, 7.0])
    np.testing.assert_allclose(keep_first(values), [0, 0.5, 0.5 + 1 / 6, 0.5 + 1 / 12, 1])
    np.testing.assert_allclose(keep_ends(values), [0, 0.5, 1, 0.75, 0])
    depth = np.linspace(0, 1, 5)
    assert residual(3 * depth + 2, depth) == pytest.approx(np.zeros(5), abs=1e-12)
    assert smoothed(2 + depth**2) == pytest.approx(2 + depth**2)
    assert distance([torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 1.0])]) == pytest.approx(
        math.sqrt(2) / 2
    )


def test_a_quick_run_goes_on_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(
        targets=(("magnitude", 0.5),),
        eps=(0.3,),
        draws=1,
        seq_len=16,
        calibration=2,
        selection=1,
        tests=1,
    )
    monkeypatch.setattr(command, "QUICK", settings)
    monkeypatch.setattr(opening, "WORK", tmp_path)
    assert command.main(["--quick", "--seconds", "0"]) == 3
    assert command.main(["--quick"]) == 0
    lines = (tmp_path / "quick" / "smollm2.jsonl").read_text().splitlines()
    done = dict(json.loads(line) for line in lines[1:])
    target = ("magnitude", 0.5)
    tested = finalists(done, settings, target)
    assert len(tested) >= 12
    for rule in tested:
        assert done[steps.test_key(target, rule, 0)]["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert command.main(["--quick"]) == 0
    assert (tmp_path / "quick" / "smollm2.jsonl").read_text().splitlines() == lines
    # The page has no place for another model: its tables are printed.
    (tmp_path / "quick" / "smollm2.jsonl").rename(tmp_path / "quick" / "other.jsonl")
    capsys.readouterr()
    assert command.main(["--quick", "--model", "folder/other"]) == 0
    assert "| other, magnitude 0.5 |" in capsys.readouterr().out


def test_tables_of_the_real_runs_are_never_written_with_the_settings_of_a_toy() -> None:
    with pytest.raises(SystemExit):
        command.main(["--tables", "--quick"])


def test_a_journal_of_another_model_is_refused(tmp_path: Path) -> None:
    subject = Subject(toy()[0])
    known = subject.variances()
    check_same_model(tmp_path / "toy.jsonl", known, subject)
    with torch.no_grad():
        subject.first[5] *= 1.01
    with pytest.raises(ValueError, match=r"toy\.jsonl holds a run with another model of this "):
        check_same_model(tmp_path / "toy.jsonl", known, subject)


def test_eps_is_the_one_of_least_perplexity_and_a_lost_score_never_wins() -> None:
    settings, target = Settings(), ("magnitude", 0.5)
    found: dict[str, Any] = {
        select_key(target, "owl", eps): [score, 0.0]
        for eps, score in zip(settings.eps, (None, 9.0, 5.0, 7.0), strict=True)
    }
    assert chosen(found, settings, target, "owl") == 0.35


def test_searched_profiles_have_their_budget_and_depth_its_correlation() -> None:
    for percent in (50, 60, 70):
        for model in profiles.models():
            found = profiles.searched(model, percent)
            assert len(found) == 32 * 7
            sizes = [profiles.numel(model, kind) for _, kind in found]
            mean = np.average(list(found.values()), weights=sizes)
            assert mean == pytest.approx(percent / 100, abs=2e-3)
    rho = profiles.correlations("Llama-2-7b-hf", 70)["depth: rising"]["rho"]["rho"]
    assert rho == pytest.approx(0.77, abs=0.005)


def test_the_committed_tables_follow_from_the_committed_journals() -> None:
    paths = {path.stem: path for path in JOURNALS.glob("*.jsonl")}
    if not paths:
        pytest.skip("the source distribution holds no journals")
    order = [name for name in MODELS if name in paths]
    journals = {name: steps_in(paths[name]) for name in order}
    kept = (JOURNALS.parent / "tables.md").read_text(encoding="utf-8")
    for part in summary.tables(journals, command.FULL).values():
        assert part in kept
