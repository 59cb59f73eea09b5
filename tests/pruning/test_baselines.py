"""Uniform and OWL against a plain loop, budgets, baselines by name, and choosing by held-out text."""

import copy
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import nn

import spectail as st
from spectail.errors import AllocationError, PruneError
from spectail.models.naming.blocks import unit_of
from spectail.pruning import baselines
from spectail.pruning.baselines import allocation_named, allocations_by_eps
from spectail.pruning.layers import make_targets
from spectail.pruning.owl import outlier_shares, owl, owl_ratios, uniform
from spectail.pruning.search import choose
from tests.pruning.models import decoder, tokens
from tests.pruning.test_prune import _hooked
from tests.reference import plain_pruning as plain


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_outliers_are_counted_as_in_the_plain_loop(name):
    model, text = decoder(name), tokens()
    weights = [target.weight for target in make_targets(model, 0.5)]
    inputs = _hooked(model, {weight.owner for weight in weights}, text)
    found = outlier_shares(model, text, m=3.0)
    assert len(found) == 2
    for block, percent in found.items():
        members = [weight for weight in weights if unit_of(weight.name) == block]
        scores = [plain.wanda_scores(w.read().numpy(), inputs[w.owner]) for w in members]
        assert percent == pytest.approx(plain.outlier_percent(scores, 3.0), abs=0.02)


def test_owl_prunes_blocks_with_more_outliers_less_and_changes_nothing():
    model, text = decoder("llama").train(), tokens()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0] *= 30
    before = copy.deepcopy(model.state_dict())
    allocation = owl(model, 0.6, calibration=text, m=3.0, lam=0.1)
    percent = allocation.settings["outlier_percent"]
    by_block = {share.unit: share.value for share in allocation.shares}
    assert max(percent, key=percent.get) == min(by_block, key=by_block.get)
    assert max(by_block.values()) - min(by_block.values()) == pytest.approx(0.2)
    assert abs(allocation.realised - 0.6) < 1e-9
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert abs(st.prune(model, allocation).realised - 0.6) < 1e-3


@given(
    some.lists(some.tuples(some.floats(0, 100), some.integers(1, 10**6)), min_size=1, max_size=40),
    some.floats(0, 0.95),
    some.floats(0, 0.5),
)
def test_owl_ratios_meet_the_budget_within_bounds_and_never_rise_with_outliers(
    units, sparsity, lam
):
    outliers, weights = (np.array(x, dtype=float) for x in zip(*units, strict=True))
    ratios = owl_ratios(outliers, weights, sparsity=sparsity, lam=lam)
    assert abs(ratios @ weights / weights.sum() - sparsity) < 1e-9
    assert ((ratios >= 0) & (ratios <= 0.998)).all()
    order = np.argsort(outliers, kind="stable")
    assert (np.diff(ratios[order]) <= 1e-12).all()


def test_owl_as_published_where_nothing_is_cut_off():
    outliers, sparsity, lam = np.array([3.0, 1.0, 2.5, 2.0]), 0.7, 0.08
    keep = (outliers - outliers.min()) / np.ptp(outliers) * 2 * lam
    keep = keep - keep.mean() + (1 - sparsity)
    np.testing.assert_allclose(
        owl_ratios(outliers, np.ones(4), sparsity=sparsity, lam=lam), 1 - keep, atol=1e-12
    )


def test_uniform_gives_one_ratio_to_all_and_survives_a_file(tmp_path):
    model = decoder("mixtral")
    allocation = uniform(model, 0.55)
    assert set(allocation.values()) == {0.55}
    assert {layer.reason for layer in allocation.left_out} == {
        "an embedding",
        "the output head",
        "a router",
    }
    loaded = st.Allocation.load(allocation.save(tmp_path / "a.json"))
    assert dict(loaded) == dict(allocation)
    assert abs(st.prune(model, loaded).realised - 0.55) < 1e-4


def test_baselines_by_name(tmp_path):
    model, text = decoder("llama"), tokens()
    file = uniform(model, 0.5).save(tmp_path / "a.json")
    for name in ("uniform", "owl", str(file)):
        assert abs(allocation_named(name, model, 0.5, calibration=text).realised - 0.5) < 1e-9
    by_alpha = allocation_named("alphapruning", model, 0.5, eps=0.1)
    assert by_alpha.settings["map"] == "linear:0.9:1.1"
    assert by_alpha.spec["cutoff"] == "peak"
    values = list(by_alpha.values())
    assert max(values) / min(values) == pytest.approx(1.1 / 0.9)


def test_farms_tail_goes_by_the_largest_tenth_within_kinds():
    torch.manual_seed(0)
    sizes = {"q_proj": (96, 96), "up_proj": (160, 96)}
    blocks = [
        nn.ModuleDict({k: nn.Linear(cols, rows) for k, (rows, cols) in sizes.items()})
        for _ in range(4)
    ]
    model = nn.ModuleDict({"layers": nn.ModuleList(blocks)})
    found = allocation_named("farms-tail", model, 0.5, eps=0.3)
    assert (found.spec["cutoff"], found.spec["window"]) == ("top:0.1", "common")
    options = {"target": "sparsity", "budget": 0.5, "map": "linear:0.3"}
    analysis = st.analyze(model, spec=st.Spec(cutoff="top:0.1"))
    assert dict(found) == dict(st.allocate(analysis, **options, standardize_by_kind=True))
    assert dict(found) != dict(st.allocate(analysis, **options))


def test_one_eps_gives_owl_the_range_that_ratios_by_alpha_have():
    model, text = decoder("llama"), tokens()
    for eps in (0.1, 0.3):
        ranges = []
        for name in ("owl", "alphapruning"):
            values = allocation_named(name, model, 0.5, eps=eps, calibration=text).values()
            ranges.append(max(values) - min(values))
        assert ranges == pytest.approx([2 * eps * 0.5] * 2, rel=1e-6)


def test_what_allocations_go_by_is_measured_once(monkeypatch):
    model, calls = decoder("llama"), []
    for module, name in ((baselines, "analyze"), (baselines, "outlier_shares")):
        inner = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, _f=inner, **k: (calls.append(_f.__name__), _f(*a, **k))[1]
        )
    for name in ("owl", "alphapruning"):
        by_eps = allocations_by_eps(name, model, 0.5, calibration=tokens())
        found = {eps: by_eps(eps) for eps in (None, 0.1, 0.2, 0.3)}
        assert dict(found[0.3]) == dict(
            allocation_named(name, model, 0.5, eps=0.3, calibration=tokens())
        )
    assert calls == ["outlier_shares"] * 2 + ["analyze"] * 2


def test_without_eps_the_published_settings_hold():
    model, text = decoder("llama"), tokens()
    assert allocation_named("alphapruning", model, 0.5).settings["map"] == "linear:0.8:1.2"
    published = allocation_named("owl", model, 0.5, calibration=text)
    assert published.settings["lambda"] == 0.08
    assert dict(published) == dict(owl(model, 0.5, calibration=text))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "magic",
            {},
            "allocation must be one of uniform, owl, alphapruning, farms, farms-tail, farms-llm or a file, not 'magic'",
        ),
        ("owl", {}, "the allocation owl needs calibration text"),
        (
            "uniform",
            {"eps": 0.1},
            "eps goes with owl, alphapruning, farms, farms-tail, farms-llm, not with uniform",
        ),
        ("farms", {"eps": 1.5}, "eps must be a number from 0 to 1, not 1.5"),
        (
            "owl",
            {"eps": -0.1, "calibration": tokens()},
            "eps must be a number from 0 to 1, not -0.1",
        ),
    ],
)
def test_names_and_options_that_do_not_go_together(name, options, message):
    with pytest.raises(PruneError, match=re.escape(message)):
        allocation_named(name, decoder("llama"), 0.5, **options)


def test_a_file_of_another_sparsity_is_refused(tmp_path):
    model = decoder("llama")
    file = uniform(model, 0.5).save(tmp_path / "a.json")
    with pytest.raises(PruneError, match=r"a\.json has a sparsity of 0\.5, not the 0\.6 asked for"):
        allocation_named(str(file), model, 0.6)
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(AllocationError, match="cannot be used"):
        allocation_named(str(tmp_path / "b.json"), model, 0.6)


def test_choosing_takes_the_lowest_score_and_puts_every_weight_back():
    model = decoder("llama")
    before = copy.deepcopy(model.state_dict())
    zeros = []

    def score(pruned):
        zeros.append(float((pruned.model.layers[0].mlp.up_proj.weight == 0).float().mean()))
        return {0.5: float("nan"), 0.7: 3.0, 0.3: 2.0}[round(zeros[-1], 1)]

    choice = choose(model, (0.5, 0.7, 0.3), prune_with=lambda s: st.prune(model, s), score=score)
    assert choice.best == 0.3
    assert choice.scores[1:] == ((0.7, 3.0), (0.3, 2.0))
    assert [round(z, 1) for z in zeros] == [0.5, 0.7, 0.3]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(PruneError, match="the score is NaN for every candidate"):
        choose(model, (0.5,), prune_with=lambda s: None, score=lambda m: float("nan"))
