"""Choosing a setting on held-out text: the best candidate, the weights put back, texts kept
apart."""

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import spectail as st
from spectail import presets
from spectail.errors import PruneError, SourceError
from spectail.evaluation import Perplexity
from spectail.pruning.allocators import as_allocator
from spectail.pruning.choice import choose, perplexity_or_nan, with_choice
from spectail.pruning.report import Evaluated, Selected
from spectail.pruning.setting import Setting
from spectail.pruning.texts import HELD_OUT, Texts, hold_out, read_texts
from tests.language import llama, tokenizer, words
from tests.pruning.models import decoder, tokens


@pytest.mark.parametrize("name", ["owl", "alphapruning", "depth:first"])
def test_the_lowest_score_is_chosen_and_told_and_the_weights_are_back(name: str) -> None:
    model, text = decoder("llama"), tokens()
    before = copy.deepcopy(model.state_dict())
    make = as_allocator(name).prepare(model, 0.5, calibration=text)
    allocations = {setting: make(setting) for setting in make.settings}
    seen = []

    def score(pruned: Any) -> Any:
        layer = pruned.model.layers[0].mlp.up_proj.weight
        seen.append(float((layer == 0).float().mean()))
        return {2: math.nan, 4: math.inf}.get(len(seen), abs(len(seen) - 3.4))

    told = []
    choice = choose(
        model, make.settings, score=score,
        prune_with=lambda s: st.prune(model, allocations[s], method="wanda", calibration=text),
        progress=lambda *step: told.append(step),
    )  # fmt: skip
    assert choice.best.eps == 0.3
    assert seen == pytest.approx(
        [a["model.layers.0.mlp.up_proj"] for a in allocations.values()], abs=1e-3
    )
    assert [setting for setting, _ in choice.scores] == list(make.settings)
    assert [setting.eps for setting in make.settings] == list(presets.PRUNE_EPS_CANDIDATES)
    assert told == [(setting, i, 6) for i, setting in enumerate(make.settings)]
    chosen = with_choice(allocations, choice)
    assert dict(chosen) == dict(allocations[choice.best])
    assert chosen.settings["eps"] == 0.3
    form = "first " if name == "depth:first" else ""
    wanted = [2.4, None, 0.4, None, 1.6, 2.6]
    assert chosen.settings["eps_scores"] == {
        f"{form}{eps:g}": value if value is None else pytest.approx(value)
        for eps, value in zip(presets.PRUNE_EPS_CANDIDATES, wanted, strict=True)
    }
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_chosen_allocation_survives_its_file(tmp_path: Path) -> None:
    model, setting = decoder("llama"), Setting(0.1)
    allocations = {setting: as_allocator("alphapruning").prepare(model, 0.5)(setting)}
    choice = choose(
        model,
        [setting],
        prune_with=lambda s: st.prune(model, allocations[s]),
        score=lambda m: 2.5,
    )
    chosen = with_choice(allocations, choice)
    loaded = st.Allocation.load(chosen.save(tmp_path / "a.json"))
    assert loaded.settings == chosen.settings
    assert loaded.settings["eps_scores"] == {"0.1": 2.5}


def test_nothing_to_choose_from_is_one_line() -> None:
    with pytest.raises(
        PruneError, match="there is nothing to choose from: give at least one candidate"
    ):
        choose(decoder("llama"), (), prune_with=print, score=lambda m: 1.0)


def test_the_last_tenth_is_held_out_and_no_word_is_cut() -> None:
    first, last = hold_out(words(1000))
    assert first + last == words(1000)
    assert len(last) == pytest.approx(HELD_OUT * len(words(1000)), abs=4)
    assert set(first.split()) | set(last.split()) <= set(words(1000).split())
    assert hold_out("x" * 100) == ("x" * 90, "x" * 10)


def test_a_model_that_gives_nan_scores_nan_and_others_as_ever() -> None:
    model, text = llama(), words(100)
    assert perplexity_or_nan(model, tokenizer(), text, seq_len=20) == st.perplexity(
        model, tokenizer(), text, seq_len=20
    )
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    assert math.isnan(perplexity_or_nan(model, tokenizer(), text, seq_len=20))


def test_what_is_not_finite_is_said_and_stored_as_null(tmp_path: Path) -> None:
    dense, lost = (
        st.perplexity(llama(), tokenizer(), words(60), seq_len=20),
        Perplexity([math.nan], seq_len=20),
    )
    report = replace(
        st.prune(llama(), 0.5),
        evaluated=(Evaluated("test.txt", dense, lost), Evaluated("other.txt", dense, dense)),
        selected=Selected(
            "cal.txt", Setting(0.2), dense, ((Setting(0.1), math.inf), (Setting(0.2), 30.0))
        ),
    )
    summary = report.summary()
    assert (
        f"perplexity on test.txt (test text): dense {dense:.5g}, the pruned model gives no "
        f"finite perpl"
    ) in summary
    assert (
        f"perplexity on other.txt (test text): dense {dense:.5g}, pruned {dense:.5g} (1 times)"
        in summary
    )
    assert (
        "eps 0.2 chosen by selection perplexity (not a test result) on cal.txt: 0.1: inf, 0.2: 30"
        in summary
    )
    stored = json.loads(report.save(tmp_path / "p.json").read_text())
    assert stored["evaluated"][0]["after"]["perplexity"] is None
    assert stored["evaluated"][0]["before"] == dense.to_dict()
    assert stored["selected"]["candidates"] == [
        {"eps": 0.1, "perplexity": None},
        {"eps": 0.2, "perplexity": 30.0},
    ]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, content in {
        "a": words(200),
        "b": words(200, seed=1),
        "c": words(90, seed=1),
        "bad": "",
    }.items():
        (tmp_path / f"{name}.txt").write_text(content)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    return tmp_path


def test_texts_are_read_and_held_out_only_where_eps_is_chosen_without_one(files: Path) -> None:
    a, b = str(files / "a.txt"), str(files / "b.txt")
    plain = read_texts(calibration=a, selection=None, tests=[b])
    assert plain.calibration is not None
    assert (plain.calibration.text, plain.selection, plain.tests[0].text) == (
        words(200),
        None,
        words(200, seed=1),
    )
    apart = read_texts(calibration=a, selection=b, choosing=True)
    assert apart.selection is not None
    assert apart.calibration is not None
    assert (apart.calibration.text, apart.selection.name) == (words(200), "b.txt")
    held = read_texts(calibration=a, selection=None, choosing=True)
    assert held.selection is not None
    assert held.calibration is not None
    assert held.calibration.text + held.selection.text == words(200)
    assert held.selection.name == "the last 10% of a.txt"
    assert read_texts(calibration=None, selection=None) == Texts()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"selection": "b"},
            "--selection goes with --eps auto: leave it out, or let eps be chosen",
        ),
        (
            {"choosing": True},
            "--eps auto needs text to choose by: give --selection FILE, or --calibration FILE, of",
        ),
        (
            {"calibration": "a", "tests": ["a"]},
            "--calibration a.txt and --evaluate a.txt share their text: give texts",
        ),
        (
            {"selection": "c", "tests": ["b"], "choosing": True},
            "--selection c.txt and --evaluate b.txt share their",
        ),
        (
            {"calibration": "b", "selection": "c", "choosing": True},
            "--calibration b.txt and --selection c.txt share",
        ),
    ],
)
def test_texts_that_do_not_go_together(files: Path, options: dict[str, Any], message: str) -> None:
    def path(name: str | None) -> Any:
        return None if name is None else files / f"{name}.txt"

    given = {
        "calibration": path(options.get("calibration")),
        "selection": path(options.get("selection")),
    }
    tests = [path(name) for name in options.get("tests", ())]
    with pytest.raises(PruneError, match=re.escape(message)):
        read_texts(**given, tests=tests, choosing=options.get("choosing", False))


def test_a_file_that_is_no_text(files: Path) -> None:
    with pytest.raises(SourceError, match=r"bad\.txt is no UTF-8 text"):
        read_texts(calibration=str(files / "bad.txt"), selection=None)
    twice = [str(files / "a.txt")] * 2
    assert len(read_texts(calibration=None, selection=None, tests=twice).tests) == 2


def test_choosing_takes_the_lowest_score_and_puts_every_weight_back() -> None:
    model = decoder("llama")
    before = copy.deepcopy(model.state_dict())
    zeros = []

    def score(pruned: Any) -> Any:
        zeros.append(float((pruned.model.layers[0].mlp.up_proj.weight == 0).float().mean()))
        return {0.5: float("nan"), 0.7: 3.0, 0.3: 2.0}[round(zeros[-1], 1)]

    choice = choose(model, (0.5, 0.7, 0.3), prune_with=lambda s: st.prune(model, s), score=score)
    assert choice.best == 0.3
    assert choice.scores[1:] == ((0.7, 3.0), (0.3, 2.0))
    assert [round(z, 1) for z in zeros] == [0.5, 0.7, 0.3]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(PruneError, match="the score is NaN for every candidate"):
        choose(model, (0.5,), prune_with=lambda s: None, score=lambda m: float("nan"))
