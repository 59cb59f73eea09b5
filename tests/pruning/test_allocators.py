"""Allocators against plain loops, their budgets, and allocators by name."""

import copy
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from numpy.typing import NDArray
from torch import nn

import spectail as st
from spectail.errors import AllocationError, PruneError
from spectail.models.naming.blocks import unit_of
from spectail.models.naming.kinds import kind_of
from spectail.pruning.allocators import (
    allocator_names,
    as_allocator,
    by_activations,
    by_alpha,
    uniform,
)
from spectail.pruning.allocators.by_activations import (
    by_number,
    falling_ratios,
    measure_blocks,
    outlier_percent,
)
from spectail.pruning.allocators.by_shape import erdos_renyi
from spectail.pruning.allocators.by_threshold import lamp_scores
from spectail.pruning.weights_to_prune import make_targets
from tests.pruning.models import decoder, tokens
from tests.pruning.test_prune import _hooked
from tests.reference import plain_pruning as plain


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_outliers_are_counted_as_in_the_plain_loop(name: str) -> None:
    model, text = decoder(name), tokens()
    weights = [target.weight for target in make_targets(model, 0.5)]
    inputs = _hooked(model, {weight.owner for weight in weights}, text)
    found = measure_blocks(model, text, partial(outlier_percent, m=3.0))
    assert len(found) == 2
    for block, percent in found.items():
        members = [weight for weight in weights if unit_of(weight.name) == block]
        scores = [plain.wanda_scores(w.read().numpy(), inputs[w.owner]) for w in members]
        assert percent == pytest.approx(plain.outlier_percent(scores, 3.0), abs=0.02)


def test_owl_prunes_blocks_with_more_outliers_less_and_changes_nothing() -> None:
    model, text = decoder("llama").train(), tokens()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0] *= 30
    before = copy.deepcopy(model.state_dict())
    percent = measure_blocks(model, text, partial(outlier_percent, m=3.0))
    allocation = by_number(model, 0.6, percent, lam=0.1, rule={"rule": "owl"})
    assert allocation.settings["by block"] == pytest.approx(percent)
    by_block = {share.unit: share.value for share in allocation.shares}
    assert max(percent, key=lambda unit: percent[unit]) == min(
        by_block, key=lambda unit: by_block[unit]
    )
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
    units: Any, sparsity: Any, lam: Any
) -> None:
    outliers, weights = (np.array(x, dtype=float) for x in zip(*units, strict=True))
    ratios = falling_ratios(outliers, weights, sparsity=sparsity, lam=lam)
    assert abs(ratios @ weights / weights.sum() - sparsity) < 1e-9
    assert ((ratios >= 0) & (ratios <= 0.998)).all()
    order = np.argsort(outliers, kind="stable")
    assert (np.diff(ratios[order]) <= 1e-12).all()


def test_owl_as_published_where_nothing_is_cut_off() -> None:
    outliers, sparsity, lam = np.array([3.0, 1.0, 2.5, 2.0]), 0.7, 0.08
    keep = (outliers - outliers.min()) / np.ptp(outliers) * 2 * lam
    keep = keep - keep.mean() + (1 - sparsity)
    np.testing.assert_allclose(
        falling_ratios(outliers, np.ones(4), sparsity=sparsity, lam=lam), 1 - keep, atol=1e-12
    )


def test_uniform_gives_one_ratio_to_all_and_survives_a_file(tmp_path: Path) -> None:
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


def test_baselines_by_name(tmp_path: Path) -> None:
    model, text = decoder("llama"), tokens()
    file = uniform(model, 0.5).save(tmp_path / "a.json")
    for name in ("uniform", "owl", str(file)):
        assert abs(as_allocator(name).prepare(model, 0.5, calibration=text)().realised - 0.5) < 1e-9
    by_alpha = as_allocator("alphapruning").prepare(model, 0.5)(0.1)
    assert by_alpha.settings["map"] == "linear:0.9:1.1"
    assert by_alpha.spec["cutoff"] == "peak"
    values = list(by_alpha.values())
    assert max(values) / min(values) == pytest.approx(1.1 / 0.9)


def test_farms_tail_goes_by_the_largest_tenth_within_kinds() -> None:
    torch.manual_seed(0)
    sizes = {"q_proj": (96, 96), "up_proj": (160, 96)}
    blocks = [
        nn.ModuleDict({k: nn.Linear(cols, rows) for k, (rows, cols) in sizes.items()})
        for _ in range(4)
    ]
    model = nn.ModuleDict({"layers": nn.ModuleList(blocks)})
    found = as_allocator("farms-tail").prepare(model, 0.5)(0.3)
    assert (found.spec["cutoff"], found.spec["window"]) == ("top:0.1", "common")
    options: dict[str, Any] = {"target": "sparsity", "budget": 0.5, "map": "linear:0.3"}
    analysis = st.analyze(model, spec=st.Spec(cutoff="top:0.1"))
    assert dict(found) == dict(st.allocate(analysis, **options, standardize_by_kind=True))
    assert dict(found) != dict(st.allocate(analysis, **options))


def test_one_eps_gives_owl_the_range_that_ratios_by_alpha_have() -> None:
    model, text = decoder("llama"), tokens()
    for eps in (0.1, 0.3):
        ranges = []
        for name in ("owl", "alphapruning"):
            values = as_allocator(name).prepare(model, 0.5, calibration=text)(eps).values()
            ranges.append(max(values) - min(values))
        assert ranges == pytest.approx([2 * eps * 0.5] * 2, rel=1e-6)


def test_what_allocations_go_by_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("llama")
    calls: list[str] = []

    def counted(inner: Any, *given: Any, **named: Any) -> Any:
        calls.append(inner.__name__)
        return inner(*given, **named)

    for module, name in ((by_alpha, "analyze"), (by_activations, "measure_blocks")):
        monkeypatch.setattr(module, name, partial(counted, getattr(module, name)))
    for name in ("owl", "alphapruning"):
        make = as_allocator(name).prepare(model, 0.5, calibration=tokens())
        found = {eps: make(eps) for eps in (None, 0.1, 0.2, 0.3)}
        again = as_allocator(name).prepare(model, 0.5, calibration=tokens())
        assert dict(found[0.3]) == dict(again(0.3))
    assert calls == ["measure_blocks"] * 2 + ["analyze"] * 2


def test_without_eps_the_published_settings_hold() -> None:
    model, text = decoder("llama"), tokens()
    assert as_allocator("alphapruning").prepare(model, 0.5)().settings["map"] == "linear:0.8:1.2"
    published = as_allocator("owl").prepare(model, 0.5, calibration=text)()
    assert published.settings["lambda"] == 0.08
    percent = measure_blocks(model, text, outlier_percent)
    assert dict(published) == dict(by_number(model, 0.5, percent, lam=0.08, rule={"rule": "owl"}))


@pytest.mark.parametrize(
    ("name", "eps", "calibration", "message"),
    [
        ("magic", None, None, "allocation must be one of uniform, depth, depth-kind, farms, "),
        ("depth:up", None, None, "depth:FORM needs a form among rising, falling, first, "),
        ("owl:up", None, None, "allocation must be one of uniform, "),
        ("owl", None, None, "the allocation owl needs calibration text"),
        ("dlp", None, None, "the allocation dlp needs calibration text"),
        ("uniform", 0.1, None, "this allocation has no eps"),
        ("lamp", 0.1, None, "this allocation has no eps"),
        ("farms", 1.5, None, "eps must be a number from 0 to 1, not 1.5"),
        ("depth", True, None, "eps must be a number from 0 to 1, not True"),
        ("owl", -0.1, tokens(), "eps must be a number from 0 to 1, not -0.1"),
    ],
)
def test_names_and_options_that_do_not_go_together(
    name: str, eps: float | None, calibration: Any, message: str
) -> None:
    with pytest.raises(PruneError, match=re.escape(message)):
        as_allocator(name).prepare(decoder("llama"), 0.5, calibration=calibration)(eps)


def test_a_file_of_another_sparsity_is_refused(tmp_path: Path) -> None:
    model = decoder("llama")
    file = uniform(model, 0.5).save(tmp_path / "a.json")
    with pytest.raises(PruneError, match=r"a\.json has a sparsity of 0\.5, not the 0\.6 asked for"):
        as_allocator(str(file)).prepare(model, 0.6)()
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(AllocationError, match="cannot be used"):
        as_allocator(str(tmp_path / "b.json")).prepare(model, 0.6)()


def test_every_allocator_meets_the_budget_and_leaves_the_model_alone() -> None:
    model, text = decoder("llama"), tokens()
    before = copy.deepcopy(model.state_dict())
    for name in allocator_names():
        make = as_allocator(name).prepare(model, 0.55, calibration=text)
        for setting in (None, *make.settings):
            found = make(setting)
            assert abs(found.realised - 0.55) < 1e-9, (name, setting)
            assert set(found) == set(uniform(model, 0.55)), (name, setting)
            assert all(0 <= value <= 0.998 + 1e-12 for value in found.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def _block_scores(model: Any, text: Any) -> dict[str, NDArray[Any]]:
    """Wanda's scores by block, from hooks and NumPy."""
    weights = [target.weight for target in make_targets(model, 0.5)]
    inputs = _hooked(model, {weight.owner for weight in weights}, text)
    found: dict[Any, Any] = {}
    for w in weights:
        score = plain.wanda_scores(w.read().numpy(), inputs[w.owner])
        found.setdefault(unit_of(w.name), []).append(np.asarray(score, dtype=float).ravel())
    return {unit: np.concatenate(scores) for unit, scores in found.items()}


def test_dlp_as_published_on_blocks_of_one_size() -> None:
    model, text, sparsity, eps = decoder("llama"), tokens(), 0.6, 0.2
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight *= 3
    m = np.array([scores.mean() for scores in _block_scores(model, text).values()])
    r = 1 - m / m.sum()
    keep = (r - r.min()) / np.ptp(r) * 2 * eps * sparsity
    keep = keep - keep.mean() + 1 - sparsity
    found = as_allocator("dlp").prepare(model, sparsity, calibration=text)
    by_block = {share.unit: share.value for share in found(eps).shares}
    np.testing.assert_allclose(list(by_block.values()), 1 - keep, atol=1e-6)
    by_block = {share.unit: share.value for share in found().shares}
    assert np.ptp(list(by_block.values())) == pytest.approx(0.3)


def test_dsa_goes_by_the_variance_of_log_scores() -> None:
    model, text = decoder("llama"), tokens()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[::2] *= 1e-3
        model.model.layers[1].mlp.up_proj.weight *= 0.2
        model.model.layers[1].mlp.up_proj.weight[0, 0] = 0
    wanted = {}
    for unit, scores in _block_scores(model, text).items():
        angle = math.atan(np.log(scores[scores > 0]).var())
        wanted[unit] = math.asin(angle) if angle <= 1 else 0.0
    make = as_allocator("dsa").prepare(model, 0.5, calibration=text)
    found = make()
    assert found.settings["by block"] == pytest.approx(wanted, rel=1e-4)
    by_block = {share.unit: share.value for share in found.shares}
    assert min(by_block, key=lambda unit: by_block[unit]) == max(
        wanted, key=lambda unit: wanted[unit]
    )


def test_one_threshold_for_all_layers_as_sorting_everything_finds() -> None:
    model, sparsity = decoder("llama"), 0.5
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight *= 2
    weights = {t.weight.name: t.weight.read().numpy() for t in make_targets(model, 0.5)}

    def lamp(values: Any) -> Any:
        flat = np.sort(np.abs(values).ravel().astype(float) ** 2)
        return flat / np.cumsum(flat[::-1])[::-1]

    scorers: dict[str, Any] = {"global": lambda v: np.abs(v).ravel(), "lamp": lamp}
    for name, score in scorers.items():
        scores = {layer: score(values) for layer, values in weights.items()}
        every = np.sort(np.concatenate(list(scores.values())))
        threshold = every[int(sparsity * every.size)]
        wanted = {layer: float((s < threshold).mean()) for layer, s in scores.items()}
        found = as_allocator(name).prepare(model, sparsity)()
        assert dict(found) == pytest.approx(wanted, abs=2e-3), name
        assert np.ptp(list(found.values())) > 0.02


@given(some.lists(some.floats(-3, 3, width=32), min_size=1, max_size=30))
def test_lamp_scores_are_those_of_the_formula(values: Any) -> None:
    weights = np.array(values, dtype=np.float32)
    squares = weights.astype(float) ** 2
    # Equal weights count in the order of the matrix, as a stable sort leaves them.
    order = np.argsort(squares, kind="stable")
    wanted = np.zeros(weights.size)
    for rank, place in enumerate(order):
        left = squares[order[rank:]].sum()
        wanted[place] = squares[place] / left if left > 0 else 0.0
    found = lamp_scores(torch.from_numpy(weights)[None]).numpy()[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-12)


def test_global_survives_layers_of_zeros_and_of_one_value() -> None:
    model: Any = decoder("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.zero_()
        model.model.layers[1].mlp.up_proj.weight.fill_(0.5)
    for name in ("global", "lamp"):
        found = as_allocator(name).prepare(model, 0.5)()
        assert abs(found.realised - 0.5) < 1e-9
        assert found["model.layers.0.mlp.up_proj"] == pytest.approx(0.998)


def test_erdos_renyi_keeps_in_proportion_and_gives_back_what_is_cut() -> None:
    shapes = np.array([[4.0, 4.0], [400.0, 400.0], [400.0, 100.0]])
    numel = shapes.prod(axis=1)
    found = 1 - erdos_renyi(shapes, 0.9)
    assert found @ numel / numel.sum() == pytest.approx(0.1, abs=1e-12)
    assert found[0] == pytest.approx(1.0)
    density = shapes.sum(axis=1) / numel
    assert found[1] / found[2] == pytest.approx(density[1] / density[2])


def test_depth_reads_no_weights_and_its_eps_spans_what_alpha_spans() -> None:
    model = decoder("llama")
    found = as_allocator("depth:falling").prepare(model, 0.5)(0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    again = as_allocator("depth:falling").prepare(model, 0.5)(0.3)
    assert dict(found) == dict(again)
    by_block = [share.value for share in {s.unit: s for s in found.shares}.values()]
    assert by_block[0] / by_block[-1] == pytest.approx(1.3 / 0.7)
    assert found.settings == {"rule": "depth", "form": "falling", "eps": 0.3}
    assert len(as_allocator("depth").settings) == 7 * len(as_allocator("farms").settings)
    assert as_allocator("depth").prepare(model, 0.5)().settings["form"] == "rising"


def test_offsets_of_kinds_move_layers_within_their_block() -> None:
    model = decoder("llama")
    plain_depth = as_allocator("depth:first").prepare(model, 0.6)(0.3)
    found = as_allocator("depth-kind:first").prepare(model, 0.6)(0.3)
    assert abs(found.realised - 0.6) < 1e-9
    moved = {name: found[name] - plain_depth[name] for name in found}
    # All layers of a kind move alike, and kinds move against each other as the table says.
    by_kind: dict[str, set[float]] = {}
    for name, value in moved.items():
        by_kind.setdefault(kind_of(name), set()).add(round(value, 9))
    assert all(len(values) == 1 for values in by_kind.values())
    moves = {kind: values.pop() for kind, values in by_kind.items()}
    for kind, offset in {"q": 0.038, "k": 0.026, "v": -0.059, "o": -0.030}.items():
        assert moves[kind] - moves["up"] == pytest.approx(offset)
    assert found.settings == {"rule": "depth-kind", "form": "first", "eps": 0.3}
    halfway = as_allocator("depth-kind:first").prepare(model, 0.65)(0.0)
    names = {kind_of(name): name for name in halfway}
    assert halfway[names["v"]] - halfway[names["up"]] == pytest.approx(-(0.059 + 0.042) / 2)
    with pytest.raises(PruneError, match="depth-kind:FORM needs a form among"):
        as_allocator("depth-kind:up")
