"""Models and settings that pruning was not written for: exact, refused in one line, or noted."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spectail as st
from spectail.core.spec import Spec
from spectail.errors import PruneError
from spectail.models.naming.select import KindFilter
from spectail.pruning.allocators import as_allocator, by_depth
from spectail.pruning.methods import SparseGPT
from spectail.pruning.page import ratios_by_depth
from spectail.pruning.prune import prune_weight
from spectail.pruning.statistics import Gram
from spectail.pruning.weights_to_prune import Scope, make_targets
from tests.pruning.models import decoder, tokens


class Block(nn.Module):
    """One convolution, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3)


class Stages(nn.Module):
    """Two stages of two blocks, and a head of numbered layers outside of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(Block(), Block())
        self.layer2 = nn.Sequential(Block(), Block())
        self.fc1, self.fc2 = nn.Linear(24, 24), nn.Linear(24, 24)


def test_depth_runs_through_all_stages_and_not_through_layers_outside_of_blocks() -> None:
    found = by_depth(Stages(), 0.5, form="rising", eps=0.3, scope=Scope(include=("fc*",)))
    blocks = [found[f"layer{stage}.{number}.conv1"] for stage in (1, 2) for number in (0, 1)]
    # All layers have one size here, so that the ratios are the map's factors times the sparsity.
    assert blocks == pytest.approx([0.35, 0.45, 0.55, 0.65])
    assert [found["fc1"], found["fc2"]] == pytest.approx([0.5, 0.5])
    assert abs(found.realised - 0.5) < 1e-9


@pytest.mark.parametrize(
    "scope",
    [Scope(exclude=("model.layers.0.*",)), Scope(exclude=("*.0.*",), of=KindFilter.of("q"))],
)
def test_the_second_block_is_not_kept_in_place_of_a_first_one_that_stays_dense(
    scope: Scope,
) -> None:
    model = decoder("llama", num_hidden_layers=4)
    found = by_depth(model, 0.5, form="first", eps=0.3, scope=scope)
    assert list(found.values()) == pytest.approx([0.5] * len(found))
    rising = by_depth(model, 0.5, form="first-rising", eps=0.3, scope=scope)
    first, *_, last = rising.values()
    assert first < last


def test_an_allocation_for_layers_of_another_size_is_refused() -> None:
    small, large = decoder("llama"), decoder("llama", intermediate_size=96)
    allocation = by_depth(small, 0.5, form="rising", eps=0.3)
    before = copy.deepcopy(large.state_dict())
    with pytest.raises(PruneError, match=r"made for another model: .*gate_proj has 3072 weights "):
        st.prune(large, allocation)
    assert all(torch.equal(large.state_dict()[name], value) for name, value in before.items())
    assert st.prune(small, allocation).realised == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_updates_that_the_stored_type_cannot_hold_are_refused(dtype: torch.dtype) -> None:
    layer = nn.Linear(2, 2, bias=False).to(dtype)
    model = nn.ModuleDict({"layers": nn.ModuleList([layer])})
    weight = layer.weight.detach().fill_(60000)
    (target,) = make_targets(model, 0.5)
    seen = Gram(2, torch.device("cpu"))
    # Two inputs that are always equal: the one that stays takes over the weight of the other.
    seen.add(torch.ones(8, 2))
    if dtype == torch.bfloat16:
        assert prune_weight(target, SparseGPT(damping=1e-4), seen).zeros == 2
        assert float(weight.max()) == pytest.approx(120000, rel=0.01)
        return
    with pytest.raises(
        PruneError, match=r"layers\.0: updated weights are not finite in float16: load .* bfloat16"
    ):
        prune_weight(target, SparseGPT(damping=1e-4), seen)
    assert bool((weight == 60000).all())


@pytest.mark.parametrize("name", ["owl", "dlp", "dsa", "global", "lamp"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rules_that_read_weights_refuse_those_that_are_not_finite(name: str, value: float) -> None:
    model = decoder("llama")
    # Nothing comes after this layer whose inputs would show it.
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(PruneError, match=r"layers\.1\.mlp\.down_proj holds NaN or infinite"):
        as_allocator(name).prepare(model, 0.5, calibration=tokens())


def test_columns_that_fill_no_group_are_noted_and_a_pattern_without_groups_is_refused() -> None:
    model = decoder("llama")  # rows of 32 and 48 inputs
    report = st.prune(model, 0.5, pattern="10:20")
    noted = {layer.name.split(".")[-1]: layer.note for layer in report.layers}
    assert noted["q_proj"] == "12 of 32 inputs fill no group of 20 and stay"
    assert noted["down_proj"] == "8 of 48 inputs fill no group of 20 and stay"
    report = st.prune(decoder("llama"), 0.5, pattern="20:40")
    noted = {layer.name.split(".")[-1]: layer.note for layer in report.layers}
    assert noted["q_proj"] == "32 of 32 inputs fill no group of 40 and stay"
    assert not any(layer.note for layer in st.prune(decoder("llama"), 0.5, pattern="8:16").layers)
    with pytest.raises(PruneError, match="no layer has 50 inputs, so pattern 25:50 prunes nothing"):
        st.prune(decoder("llama"), 0.5, pattern="25:50")


@pytest.mark.parametrize("method", ["wanda", "wanda-variant"])
def test_scores_beyond_float32_are_refused_for_they_rank_nothing(method: str) -> None:
    model = decoder("llama")
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight.mul_(1e38)
    message = r"layers\.1\.mlp\.down_proj: .* beyond float32: exclude it, or prune by magnitude"
    with pytest.raises(PruneError, match=message):
        st.prune(model, 0.5, method=method, calibration=tokens())
    with pytest.raises(PruneError, match=message):
        as_allocator("dlp").prepare(model, 0.5, calibration=tokens())
    with pytest.raises(PruneError, match="updated weights are not finite in float32"):
        st.prune(model, 0.5, method="sparsegpt", calibration=tokens(), pattern="2:4")


@pytest.mark.parametrize(("word", "told"), [(-7, -7), (100, 100)])
def test_a_token_outside_of_the_vocabulary_is_named(word: int, told: int) -> None:
    ids = tokens()
    ids[1, 3] = word
    with pytest.raises(PruneError, match=f"calibration holds token {told}, the model knows 100"):
        st.prune(decoder("llama"), 0.5, method="wanda", calibration=ids)


def test_the_page_of_a_run_by_a_file_shows_every_layer_of_the_file(tmp_path: Path) -> None:
    model = decoder("mixtral")
    model.save_pretrained(tmp_path / "model")
    analysis = st.analyze(tmp_path / "model", spec=Spec(window=16))
    options: dict[str, Any] = {
        "target": "sparsity",
        "budget": 0.5,
        "level": "layer",
        "missing": "mean",
    }
    file = st.allocate(analysis, **options).save(tmp_path / "a.json")
    given = st.Allocation.load(file)
    found = as_allocator(str(file)).prepare(model, 0.5)()
    # The file has experts apart, and the live model has them fused under another name.
    assert not set(given) <= set(found)
    targets = make_targets(model, given)
    assert dict(found) == {target.weight.name: target.ratio for target in targets}
    assert {share.unit for share in found.shares} == set(found)
    assert found.realised == given.realised
    report = st.prune(model, found)
    assert {layer.name for layer in found.left_out} == {layer.name for layer in report.left_out}
    used = next(x for x in ratios_by_depth(found, report, {}).data if x.name == "used")
    for block, value in enumerate(used.y):
        layers = [x for x in report.layers if x.name.startswith(f"model.layers.{block}.")]
        numel = sum(layer.numel for layer in layers)
        assert value == pytest.approx(sum(x.requested * x.numel for x in layers) / numel)
