"""Layers chosen by kind and type, and models without blocks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import spectail as st
from spectail.allocation.coverage import NO_BLOCKS
from spectail.models.naming.select import KindFilter
from tests.allocation.conftest import layer, results, transformer


def _allocate(analysis: st.Results, **options: object) -> st.Allocation:
    return st.allocate(analysis, target="sparsity", budget=0.5, **options)  # type: ignore[arg-type]


def test_only_layers_of_the_chosen_kinds_take_part() -> None:
    found = _allocate(transformer(), kinds="q")
    assert {name.rsplit(".", 1)[-1] for name in found} == {"q_proj"}
    reasons = {x.name: (str(x.why.code), x.reason) for x in found.left_out}
    assert reasons["model.layers.0.mlp.up_proj"] == ("other-kind", "not of kind q")
    # What stays out in any case keeps its own reason.
    assert reasons["model.embed_tokens"] == ("embedding", "an embedding")
    assert math.fsum(x.value * x.numel for x in found.shares) == pytest.approx(
        0.5 * sum(x.numel for x in found.shares), abs=1e-9
    )


def test_a_kind_that_stays_out_takes_part_when_it_is_named() -> None:
    found = _allocate(transformer(), kinds=["q", "head"])
    assert set(found) == {"lm_head", *(f"model.layers.{b}.self_attn.q_proj" for b in range(4))}
    assert set(_allocate(transformer(), types="embedding")) == {"model.embed_tokens"}


def test_types_and_kinds_together_and_exclude() -> None:
    conv: dict[str, Any] = {"kind": "conv", "n_matrices": 9}
    analysis = results(
        layer("layers.0.conv1", 2.1, **conv),
        layer("layers.0.conv2", 2.2, **conv),
        layer("layers.1.conv1", 2.4, **conv),
        layer("layers.1.q_proj", 2.5),
        layer("stem", 2.6, **conv),
    )
    # The stem lies in no block: a type does not change that.
    assert set(_allocate(analysis, types="conv", exclude=["*.conv2"])) == {
        "layers.0.conv1",
        "layers.1.conv1",
    }
    assert set(_allocate(analysis, kinds="q,conv", types="linear")) == {"layers.1.q_proj"}


BAD = {
    "unknown kind": ({"kinds": "query"}, "--kind 'query' matches no layer; the kinds here are "),
    "a kind this model lacks": ({"kinds": "q,conv"}, "--kind 'conv' matches no layer; "),
    "unknown type": ({"types": "dense"}, "--type 'dense' matches no layer; the types here are "),
    "nothing in common": ({"kinds": "q", "types": "embedding"}, "no layer is of kind q and type"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_kind_that_matches_nothing_is_an_error(case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(st.AllocationError, match=message):
        _allocate(transformer(), **options)
    torch.manual_seed(0)
    state = {
        "model.embed_tokens.weight": torch.randn(90, 64),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(64, 64),
    }
    with pytest.raises(st.SpecError, match=message):
        st.analyze(state, **options)  # type: ignore[arg-type]


def test_analyze_keeps_the_choice_with_the_run() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(20, 70, 3), nn.Conv2d(70, 80, 3), nn.Linear(80, 70))
    analysis = st.analyze(model, types="conv", exclude=["1"])
    assert list(analysis.table["name"]) == ["0"]
    assert (analysis.run.types, analysis.run.kinds) == (("conv",), ())
    assert st.RunInfo.from_dict(analysis.run.to_dict()) == analysis.run


def test_no_glob_and_kind_in_common_is_said() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(20, 70, 3), nn.Linear(80, 70))
    with pytest.raises(
        st.SpecError,
        match="--include '1' and --type 'conv' together leave none of the 2 layers; use fewer",
    ):
        st.analyze(model, types="conv", include=["1"])


def test_words_are_read_once() -> None:
    assert KindFilter.of(["q, k", "q"], ()) == KindFilter(("q", "k"), ())


def _plain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 80), nn.ReLU(), nn.Linear(80, 64)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("target", ["sparsity", "bits"])
def test_without_blocks_layers_are_the_units(target: str) -> None:
    analysis = st.analyze(_plain(), quantization_errors=target == "bits")
    budget = 0.5 if target == "sparsity" else 4
    found = st.allocate(analysis, target=target, budget=budget)
    assert [share.unit for share in found.shares] == ["0", "2", "4"]
    assert NO_BLOCKS in found.notes
    assert f"note: {NO_BLOCKS}" in found.summary()


def test_a_rate_needs_no_blocks_and_no_note() -> None:
    found = st.allocate(st.analyze(_plain()), target="lr", budget=0.1)
    assert (len(found), NO_BLOCKS in found.notes) == (3, False)


def test_what_stays_out_for_its_role_stays_out_without_blocks() -> None:
    analysis = results(
        layer("embed", 2.0), layer("hidden", 2.2), layer("out_layer", 2.4), layer("classifier", 2.5)
    )
    assert set(_allocate(analysis)) == {"hidden", "out_layer"}


def test_a_plain_module_is_pruned_by_one_number() -> None:
    model = _plain()
    report = st.prune(model, 0.5)
    assert report.realised == pytest.approx(0.5, abs=1e-3)
    assert [str(note) for note in report.notes] == [f"layers: {NO_BLOCKS}"]
    weights = [m.weight for m in model if isinstance(m, nn.Linear)]
    assert [int((weight == 0).sum()) * 2 for weight in weights] == [w.numel() for w in weights]


def test_prune_by_type_leaves_the_others_dense() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3)
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(64, 32))
    report = st.prune(model, 0.5, types="linear")
    assert [layer.name for layer in report.layers] == ["2"]
    assert bool((conv.weight != 0).all())
    with pytest.raises(st.PruneError, match="kinds and types go with one ratio"):
        st.prune(model, {"2": 0.5}, types="linear")
