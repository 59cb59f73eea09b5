"""Choosing eps on held-out text: the best candidate, the weights put back, texts kept apart."""

import copy
import json
import math
import re
from dataclasses import replace

import pytest
import torch

import spectail as st
from spectail import presets
from spectail.errors import PruneError, SourceError
from spectail.evaluation import Perplexity
from spectail.pruning.baselines import allocations_by_eps
from spectail.pruning.report import Evaluated, Selected
from spectail.pruning.selection import HELD_OUT, choose_eps, hold_out, perplexity_or_nan
from spectail.pruning.texts import Texts, read_texts
from tests.language import llama, tokenizer, words
from tests.pruning.models import decoder, tokens


@pytest.mark.parametrize("name", ["owl", "alphapruning"])
def test_the_lowest_score_is_chosen_and_told_and_the_weights_are_back(name):
    model, text = decoder("llama"), tokens()
    before = copy.deepcopy(model.state_dict())
    by_eps = allocations_by_eps(name, model, 0.5, calibration=text)
    allocations = {eps: by_eps(eps) for eps in presets.PRUNE_EPS_CANDIDATES}
    seen = []

    def score(pruned):
        layer = pruned.model.layers[0].mlp.up_proj.weight
        seen.append(float((layer == 0).float().mean()))
        return {2: math.nan, 4: math.inf}.get(len(seen), abs(len(seen) - 3.4))

    told = []
    chosen = choose_eps(
        model, allocations, score=score, prune_with=lambda a: st.prune(model, a, method="wanda", calibration=text),
        progress=lambda *step: told.append(step),
    )  # fmt: skip
    assert chosen.eps == 0.3
    assert seen == pytest.approx(
        [a["model.layers.0.mlp.up_proj"] for a in allocations.values()], abs=1e-3
    )
    assert [eps for eps, _ in chosen.scores] == list(presets.PRUNE_EPS_CANDIDATES)
    assert told == [(eps, i, 6) for i, eps in enumerate(presets.PRUNE_EPS_CANDIDATES)]
    assert dict(chosen.allocation) == dict(allocations[0.3])
    assert chosen.allocation.settings["eps"] == 0.3
    scores = chosen.allocation.settings["eps_scores"]
    assert scores == {"0.1": pytest.approx(2.4), "0.2": None, "0.3": pytest.approx(0.4), "0.4": None,
                      "0.5": pytest.approx(1.6), "0.6": pytest.approx(2.6)}  # fmt: skip
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_chosen_allocation_survives_its_file(tmp_path):
    model = decoder("llama")
    by_eps = allocations_by_eps("alphapruning", model, 0.5)
    chosen = choose_eps(
        model, {0.1: by_eps(0.1)}, prune_with=lambda a: st.prune(model, a), score=lambda m: 2.5
    )
    loaded = st.Allocation.load(chosen.allocation.save(tmp_path / "a.json"))
    assert loaded.settings == chosen.allocation.settings
    assert loaded.settings["eps_scores"] == {"0.1": 2.5}


def test_nothing_to_choose_from_is_one_line():
    with pytest.raises(
        PruneError, match="there is nothing to choose from: give at least one candidate"
    ):
        choose_eps(decoder("llama"), {}, prune_with=print, score=lambda m: 1.0)


def test_the_last_tenth_is_held_out_and_no_word_is_cut():
    first, last = hold_out(words(1000))
    assert first + last == words(1000)
    assert len(last) == pytest.approx(HELD_OUT * len(words(1000)), abs=4)
    assert set(first.split()) | set(last.split()) <= set(words(1000).split())
    assert hold_out("x" * 100) == ("x" * 90, "x" * 10)


def test_a_model_that_gives_nan_scores_nan_and_others_as_ever():
    model, text = llama(), words(100)
    assert perplexity_or_nan(model, tokenizer(), text, seq_len=20) == st.perplexity(
        model, tokenizer(), text, seq_len=20
    )
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    assert math.isnan(perplexity_or_nan(model, tokenizer(), text, seq_len=20))


def test_what_is_not_finite_is_said_and_stored_as_null(tmp_path):
    dense, lost = (
        st.perplexity(llama(), tokenizer(), words(60), seq_len=20),
        Perplexity([math.nan], seq_len=20),
    )
    report = replace(
        st.prune(llama(), 0.5),
        evaluated=(Evaluated("test.txt", dense, lost), Evaluated("other.txt", dense, dense)),
        selected=Selected("cal.txt", 0.2, dense, ((0.1, math.inf), (0.2, 30.0))),
    )
    summary = report.summary()
    assert (
        f"perplexity on test.txt (test text): dense {dense:.5g}, the pruned model gives no finite perpl"
        in summary
    )
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
def files(tmp_path):
    for name, content in {
        "a": words(200),
        "b": words(200, seed=1),
        "c": words(90, seed=1),
        "bad": "",
    }.items():
        (tmp_path / f"{name}.txt").write_text(content)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    return tmp_path


def test_texts_are_read_and_held_out_only_where_eps_is_chosen_without_one(files):
    a, b = files / "a.txt", files / "b.txt"
    plain = read_texts(calibration=a, selection=None, tests=[b])
    assert (plain.calibration.text, plain.selection, plain.tests[0].text) == (
        words(200),
        None,
        words(200, seed=1),
    )
    apart = read_texts(calibration=a, selection=b, choosing=True)
    assert (apart.calibration.text, apart.selection.name) == (words(200), "b.txt")
    held = read_texts(calibration=a, selection=None, choosing=True)
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
def test_texts_that_do_not_go_together(files, options, message):
    def path(name):
        return None if name is None else files / f"{name}.txt"

    given = {
        "calibration": path(options.get("calibration")),
        "selection": path(options.get("selection")),
    }
    tests = [path(name) for name in options.get("tests", ())]
    with pytest.raises(PruneError, match=re.escape(message)):
        read_texts(**given, tests=tests, choosing=options.get("choosing", False))


def test_a_file_that_is_no_text(files):
    with pytest.raises(SourceError, match=r"bad\.txt is no text in UTF-8"):
        read_texts(calibration=files / "bad.txt", selection=None)
    assert len(read_texts(calibration=None, selection=None, tests=[files / "a.txt"] * 2).tests) == 2
