"""What sparsity goes by: alpha, variance, depth, sums of them, and the first block kept."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

import spectail as st
from spectail.allocation.depth import FORMS, depth_scores
from spectail.allocation.scores import PARTS, check_by, scores_of
from spectail.allocation.targets import Sparsity
from spectail.allocation.units import make_units
from spectail.results.depth import depths
from tests.allocation.conftest import layer, results, transformer


def test_forms_of_depth_on_five_blocks() -> None:
    units = [f"model.layers.{i}" for i in range(5)]
    expected: dict[str, list[float]] = {
        "rising": [0, 0.25, 0.5, 0.75, 1],
        "falling": [1, 0.75, 0.5, 0.25, 0],
        "first": [0, 1, 1, 1, 1],
        "last": [1, 1, 1, 1, 0],
        "first-last": [0, 1, 1, 1, 0],
        "first-rising": [0, 0.5, 2 / 3, 5 / 6, 1],
        "first-falling": [0, 1, 2 / 3, 1 / 3, 0],
    }
    assert expected.keys() == FORMS.keys()
    for form, scores in expected.items():
        np.testing.assert_allclose(depth_scores(units, form), scores, err_msg=form)


def test_depth_is_the_place_in_the_own_stack_by_number() -> None:
    units = [
        "enc.10",
        "enc.2",
        "dec.0",
        "dec.1",
        "enc.0",
        "pooler",
        "alone.3",
        "layer_1",
        "layer_0",
    ]
    found = dict(zip(units, depth_scores(units, "rising"), strict=True))
    assert (found["enc.0"], found["enc.2"], found["enc.10"]) == (0, 0.5, 1)
    assert (found["dec.0"], found["dec.1"]) == (0, 1)
    assert (found["layer_0"], found["layer_1"]) == (0, 1)
    assert found["pooler"] == found["alone.3"] == 0.5


def test_stages_of_one_network_continue_each_other_as_in_every_depth_that_is_told() -> None:
    resnet = [f"layer{stage}.{number}" for stage in (1, 2, 3) for number in (0, 1)]
    unet = [f"unet.{part}" for part in ("down_blocks.0", "down_blocks.1", "mid_block")]
    unet += ["unet.up_blocks.0", "unet.up_blocks.1"]
    for units in (resnet, unet):
        told = np.array(list(depths(units).values()))
        np.testing.assert_allclose(depth_scores(units, "rising"), told / told.max())
        assert list(depth_scores(units, "first")) == [0, *[1] * (len(units) - 1)]


def test_layers_in_no_block_have_no_depth_whatever_number_they_end_in() -> None:
    names = ["conv_1", "conv_2", "head.fc2", "h.0.attn.q_proj", "h.1.attn.q_proj", "h.2.mlp.fc1"]
    layers = [layer(name, alpha=2.0) for name in names]
    for form in FORMS:
        found = scores_of(make_units(layers, "block"), f"depth:{form}")
        np.testing.assert_allclose(found[:3], 0.5)
        np.testing.assert_allclose(found[3:], depth_scores(["h.0", "h.1", "h.2"], form))


@pytest.mark.parametrize("form", FORMS)
def test_a_block_keeps_its_place_when_others_take_no_part(form: str) -> None:
    blocks = [f"h.{number}" for number in range(5)]
    whole = dict(zip(blocks, depth_scores(blocks, form), strict=True))
    for some in (blocks[1:], blocks[:-1], blocks[1:4:2]):
        found = dict(zip(some, depth_scores(some, form, blocks=blocks), strict=True))
        assert found == {name: whole[name] for name in some}


def test_without_the_first_block_the_second_is_not_kept_in_its_place() -> None:
    analysis = transformer(blocks=5)

    def ratios(by: str) -> dict[str, float]:
        target = Sparsity(by=by, map="linear:0.4")
        found = st.allocate(analysis, target=target, budget=0.6, exclude=["model.layers.[04].*"])
        assert {share.unit for share in found.shares} == {f"model.layers.{i}" for i in (1, 2, 3)}
        return dict(found)

    for by in ("depth:first", "depth:first-last", "first+depth:last"):
        assert list(ratios(by).values()) == pytest.approx([0.6] * 6), by
    assert ratios("ends+alpha") == pytest.approx(ratios("alpha"))


def test_layers_of_a_block_share_its_place() -> None:
    units = ["h.0", "h.0", "h.1", "h.2", "h.2", "h.2"]
    np.testing.assert_allclose(depth_scores(units, "falling"), [1, 1, 0.5, 0, 0, 0])


@pytest.mark.parametrize("form", FORMS)
def test_depth_of_an_allocation_looks_at_no_alpha(form: str) -> None:
    analysis = transformer(blocks=5)
    lost = [replace(record, alpha=math.nan) for record in analysis.layers]
    blind = replace(analysis, layers=tuple(lost))
    target = Sparsity(by=f"depth:{form}", map="linear:0.4")
    found = st.allocate(blind, target=target, budget=0.6)
    assert dict(found) == dict(st.allocate(analysis, target=target, budget=0.6))
    assert abs(found.realised - 0.6) < 1e-9
    assert {share.alpha for share in found.shares} == {None}
    assert found.settings["by"] == f"depth:{form}"
    assert found.depth_correlations is None
    assert dict(st.Allocation.from_dict(found.to_dict())) == dict(found)
    by_block = {share.unit: share.value for share in found.shares}
    order = np.argsort(depth_scores(list(by_block), form), kind="stable")
    assert (np.diff(np.array(list(by_block.values()))[order]) >= -1e-12).all()


def test_sums_are_of_standard_scores_and_first_keeps_the_first_block() -> None:
    rng = np.random.default_rng(0)
    analysis = transformer(blocks=6)
    layers = tuple(
        replace(record, alpha=float(rng.uniform(2, 5)), weight_var=float(rng.uniform(0.1, 9)))
        for record in analysis.layers
        if ".layers." in record.name
    )
    units = make_units(layers, "block")
    a, v = units.alpha, -np.log(units.variance)
    both = (a - a.mean()) / a.std() + (v - v.mean()) / v.std()
    np.testing.assert_allclose(scores_of(units, "alpha+variance"), both)
    np.testing.assert_array_equal(scores_of(units, "alpha"), a)
    first = scores_of(units, "first+alpha+variance")
    assert first[0] == 0
    others = both[1:]
    np.testing.assert_allclose(first[1:], 0.5 + 0.5 * (others - others.min()) / np.ptp(others))
    ends = scores_of(units, "ends+alpha")
    assert (ends[0], ends[-1], ends[1:-1].min(), ends[1:-1].max()) == (0, 0, 0.5, 1)
    # A layer's own ratio: every layer of the first block is kept.
    by_layer = make_units(layers, "layer")
    found = dict(zip(by_layer.names, scores_of(by_layer, "first+alpha"), strict=True))
    kept = [name for name, score in found.items() if score == 0]
    assert kept == [record.name for record in layers if ".layers.0." in record.name]


@pytest.mark.parametrize(
    "by", ["beta", "", "first", "alpha+alpha", "alpha+first", "depth", "depth:up", 3, None, "+"]
)
def test_what_is_no_score_is_refused(by: object) -> None:
    with pytest.raises(st.AllocationError, match=re.escape(f"not {by!r}")):
        Sparsity(by=by)  # type: ignore[arg-type]


def test_every_part_and_pair_is_a_score_and_meets_the_budget() -> None:
    analysis = transformer(blocks=4)
    names = list(PARTS)
    texts = names + [f"{a}+{b}" for a in names for b in names if a != b]
    for text in [*texts, *(f"{kept}+{name}" for kept in ("first", "ends") for name in names)]:
        assert check_by(text) == text
        found = st.allocate(analysis, target=Sparsity(by=text), budget=0.5)
        assert abs(found.realised - 0.5) < 1e-9, text


def test_variance_needs_layers_that_vary() -> None:
    analysis = results(layer("model.layers.0.q_proj"), layer("model.layers.1.q_proj"))
    flat = replace(
        analysis, layers=tuple(replace(record, weight_var=0.0) for record in analysis.layers)
    )
    with pytest.raises(st.AllocationError, match="by variance needs layers of known variance"):
        st.allocate(flat, target=Sparsity(by="variance"), budget=0.5)
