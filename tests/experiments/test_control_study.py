"""The study of training with controls: grids, the choice by other seeds, tables, quick runs."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import spectail as st
from experiments.common import ROOT, Journal
from experiments.control_study import (
    ALPHA,
    KINDS,
    PLAIN,
    RULES,
    Candidate,
    Grid,
    Study,
    key,
    of_factors,
    rule_of,
    tables,
)
from experiments.controls import Control
from experiments.images import controls as images
from experiments.pde import controls as pde
from spectail.training.history import Update

GRID = Grid((0.1, 0.2), ("linear:0.5:1.5", "linear:0.1:1.9"))
STUDY = Study({"net": GRID}, seeds=3, plain="one rate", best=max)
DEPTH = "by depth"


def filled(study: Any, result: Any) -> dict[Any, Any]:
    """Results of every run; ``result`` gives validation and test by candidate and seed."""
    done = {}
    for grid in study.grids.values():
        for rule in grid.rules:
            for candidate in grid.candidates(rule):
                for seed in range(study.seeds):
                    validation, test = result(candidate, seed)
                    run = {"validation": validation, "test": test}
                    if rule != PLAIN:
                        run |= {"mean factor": 0.75, "alpha and depth": -0.5}
                    done[key("net", candidate, seed)] = run
    return done


def test_all_rules_have_the_same_rates_and_maps() -> None:
    grids = {rule: GRID.candidates(rule) for rule in RULES}
    settings = [(c.lr, c.map) for c in grids[ALPHA]]
    assert len(set(settings)) == 4
    assert [c.lr for c in grids[PLAIN]] == [0.1, 0.2]
    assert [(c.lr, c.map) for c in grids[DEPTH]] == settings * 2  # rising and falling
    assert set(Grid(GRID.lrs, GRID.maps, kinds=True).rules) - set(GRID.rules) == {KINDS}
    for rule in RULES.keys() - {PLAIN, DEPTH}:
        assert [(c.lr, c.map) for c in grids[rule]] == settings


def test_a_seed_has_no_say_in_its_own_setting_and_test_results_have_none() -> None:
    liked = Candidate(ALPHA, 0.2, "linear:0.1:1.9")
    other = Candidate(ALPHA, 0.1, "linear:0.1:1.9")

    def result(candidate: Any, seed: int) -> tuple[int, int]:
        if candidate == liked:
            return (100 if seed == 1 else 50), 0
        return (60 if candidate == other else 40), 99

    done = filled(STUDY, result)
    chosen = [STUDY.chosen(done, "net", ALPHA, seed) for seed in range(3)]
    assert chosen == [liked, other, liked]
    lowest = Study(STUDY.grids, 3, "one rate", best=min)
    assert lowest.chosen(done, "net", ALPHA, 0) not in (liked, other)


def test_only_seeds_that_are_complete_count() -> None:
    done = filled(STUDY, lambda candidate, seed: (1.0, 2.0))
    assert STUDY.complete(done, "net") == 3
    falling = Candidate("falling with depth", 0.2, "linear:0.1:1.9")
    del done[key("net", falling, 1)]
    assert STUDY.complete(done, "net") == 1
    assert all("**net** (1 seed)" in table for table in tables(done, STUDY, 2).values())
    del done[key("net", falling, 0)]  # the rule has not been run with a single seed
    assert STUDY.complete(done, "net") == 3
    assert f"| {DEPTH} |" not in tables(done, STUDY, 2)["controls"]
    del done[key("net", Candidate(PLAIN, 0.2), 0)]
    assert all("net" not in table for table in tables(done, STUDY, 2).values())
    assert STUDY.complete({}, "net") == 0


def test_a_single_seed_chooses_by_its_own_validation_result() -> None:
    liked = Candidate(ALPHA, 0.1, "linear:0.1:1.9")
    done = filled(STUDY, lambda candidate, seed: (candidate == liked, candidate != liked))
    first = {name: run for name, run in done.items() if name.endswith("| 0")}
    assert STUDY.chosen(first, "net", ALPHA, 0) == liked


def test_tables_compare_seed_by_seed() -> None:
    def outcome(candidate: Any, seed: int) -> tuple[Any, Any]:
        better = {ALPHA: 2.0, "rising with depth": 3.0, "mean factor": 1.0}
        gain = better.get(candidate.arrangement, 0.0) - (candidate.lr == 0.1) * 0.5
        return gain, 70 + 10 * seed + gain

    parts = tables(filled(STUDY, outcome), STUDY, 1)
    assert all(part.startswith("**net** (3 seeds)\n\n| ") for part in parts.values())
    row = "\n| {} | {} ± 10.0 | {} | {} | {} (3) |"
    chosen = "0.2, linear:0.5:1.5"
    assert row.format("one rate", "80.0", "-2.0 ± 0.0", "", "0.2") in parts["controls"]
    assert row.format(ALPHA, "82.0", "", "+2.0 ± 0.0", chosen) in parts["controls"]
    rising = f"rising with depth, {chosen}"
    assert row.format(DEPTH, "83.0", "+1.0 ± 0.0", "+3.0 ± 0.0", rising) in parts["controls"]
    every = parts["every setting"].splitlines()
    assert len(every) == 4 + 2 + 6 * 4
    slower = "mean factor, 0.1, linear:0.1:1.9"
    result = "0.5 ± 0.0 | 80.5 ± 10.0 | -1.0 ± 0.0 | 0.75 ± 0.00 | -0.50 ± 0.00"
    assert f"| {slower} | {result} |" in every
    # One rate has no map and compares with alpha only where there is a single one.
    assert "| one rate, 0.2 | 0.0 ± 0.0 | 80.0 ± 10.0 |  |  |  |" in every
    single = Study({"net": Grid((0.2,), GRID.maps[:1], beside=(0.3,))}, 3, "one rate", best=max)
    done = filled(single, outcome)
    assert "0.3" not in tables(done, single, 1)["every setting"]  # not run yet
    done |= {key("net", Candidate(PLAIN, 0.3), i): {"validation": 9, "test": 9} for i in range(3)}
    assert single.chosen(done, "net", PLAIN, 0).lr == 0.2
    found = tables(done, single, 1)["every setting"]
    assert "| one rate, 0.3 | 9.0 ± 0.0 | 9.0 ± 0.0 |  |  |  |" in found
    assert "| one rate, 0.2 | 0.0 ± 0.0 | 80.0 ± 10.0 | -2.0 ± 0.0 |  |  |" in found


def test_every_arrangement_has_a_rule_that_wraps_alphas() -> None:
    by_alpha = st.TempBalance(map="linear:0.1:1.9", include=("0",))
    network = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(4)])
    made = partial(rule_of, rule=by_alpha, network=network, example=torch.zeros(1, 64), seed=5)
    found: dict[str, Any] = {
        c.arrangement: made(c) for rule in RULES for c in GRID.candidates(rule)
    }
    assert (found.pop(PLAIN), found.pop(ALPHA)) == (None, by_alpha)
    assert len({str(rule.arrangement) for rule in found.values()}) == 6
    assert all(isinstance(rule, Control) and rule.map == by_alpha.map for rule in found.values())
    assert found["rising with depth"].arrangement.rising
    assert not found["falling with depth"].arrangement.rising


def test_the_mean_factor_and_the_place_of_alpha_are_kept() -> None:
    up = Update(0, 0, {"a": 2.0, "b": 3.0, "c": 4.0}, {"a": 0.5, "b": 1.0, "c": 1.5}, {})
    down = Update(1, 1, {"a": 4.0, "b": 3.0, "c": 2.0}, {"a": 3.0, "b": 3.0, "c": 3.0}, {})
    assert of_factors([up, down], ["c", "x", "b", "a"])["alpha and depth"] == pytest.approx(0)
    assert of_factors([up], ["c", "x", "b", "a"]) == {"mean factor": 1, "alpha and depth": -1}
    assert of_factors([up, down], ["a", "b", "c"])["mean factor"] == 2
    assert of_factors([], ["a"]) == {}


@pytest.mark.parametrize("experiment", [images, pde])
def test_a_quick_run_trains_every_arrangement_and_goes_on(
    experiment: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--quick", "--out", str(tmp_path)]
    assert experiment.main([*where, "--seconds", "0"]) == 3
    assert experiment.main(where) == 0
    journal = [json.loads(line) for line in (tmp_path / "controls.jsonl").read_text().splitlines()]
    runs = dict(line for line in journal[1:] if line[0] != "environment")
    assert len(runs) == 2 * 7
    assert all(run["test"] > 0 for run in runs.values())
    assert len({run["mean factor"] for run in runs.values() if "mean factor" in run}) > 2
    capsys.readouterr()
    assert experiment.main(where) == 0  # nothing is left to do
    assert "[" not in capsys.readouterr().out.partition("|")[0]


def test_processes_do_the_runs_of_one_process(tmp_path: Path) -> None:
    journals = {}
    for workers in ("1", "2"):
        where = tmp_path / workers
        assert images.main(["--quick", "--out", str(where), "--workers", workers]) == 0
        lines = (where / "controls.jsonl").read_text().splitlines()[1:]
        journals[workers] = dict(json.loads(line) for line in lines)
    assert journals["1"] == journals["2"]


def test_runs_are_balanced_over_cases() -> None:
    grids = {"a": Grid((0.1,), ("linear:0.5:1.5",)), "b": Grid((0.2,), ("linear:0.5:1.5",))}
    runs = list(Study(grids, 2, "one rate", best=max).runs())
    assert [seed for _, _, seed in runs] == [0] * 14 + [1] * 14
    assert len(set(runs)) == 28
    assert [case for case, _, _ in runs[:14]] == ["a"] * 7 + ["b"] * 7


@pytest.mark.parametrize(
    ("experiment", "options"), [(images, []), (images, ["--full", "--device", "cuda"]), (pde, [])]
)
def test_the_tables_of_the_docs_are_those_of_the_journals(
    experiment: Any, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / f"{experiment.__package__.rpartition('.')[2]}-results.md"
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    copy = tmp_path / "docs" / page.name
    copy.write_text(page.read_text())
    # No time for any run: the page is filled with what the journal has, if it is of these settings.
    assert experiment.main([*options, "--seconds", "0"]) in (0, 3)
    assert copy.read_text() == page.read_text()


def test_a_journal_of_a_gpu_is_kept_apart(tmp_path: Path) -> None:
    where = ["--quick", "--out", str(tmp_path), "--seconds", "0"]
    images.main([*where, "--device", "cuda"])
    assert json.loads((tmp_path / "controls.jsonl").read_text())["settings"]["device"] == "cuda"
    with pytest.raises(ValueError, match="other settings"):
        images.main(where)


@pytest.mark.parametrize("experiment", [images, pde])
def test_a_toy_does_not_go_into_the_real_journal(
    experiment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        experiment.main(["--quick"])
    assert "--quick needs --out" in capsys.readouterr().err


def test_a_journal_of_other_settings_is_refused(tmp_path: Path) -> None:
    Journal.open(tmp_path / "controls.jsonl", {"other": 1})
    with pytest.raises(ValueError, match="other settings"):
        images.main(["--quick", "--out", str(tmp_path)])
