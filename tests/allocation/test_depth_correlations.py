"""What an allocation says about depth: its own block means, ranked by
SciPy, and never a single layer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

import spectail as st
from spectail.allocation.allocation import Allocation, LayerValue
from tests.allocation.conftest import layer, llama, results, transformer

BLOCKS = 12


def made(
    values: Any,
    *,
    alpha: Any = None,
    settings: Any = None,
    stacks: Any = ("model.layers",),
    target: str = "sparsity",
) -> Allocation:
    """An allocation of two layers of unequal size per block; ``values`` are those of the large
    ones."""
    shares = [
        LayerValue(
            f"{stack}.{b}.{kind}",
            value if numel > 1 else 0.0,
            f"{stack}.{b}",
            alpha and alpha[b],
            numel,
        )
        for stack in stacks
        for b, value in enumerate(values)
        for kind, numel in (("mlp.up_proj", 300), ("self_attn.q_proj", 1))
    ]  # fmt: skip
    return Allocation(target=target, budget=0.5, settings=settings or {}, shares=tuple(shares))


def test_a_block_counts_once_by_the_mean_of_its_weights() -> None:
    values = list(np.random.default_rng(0).uniform(0.2, 0.8, BLOCKS))
    found = made(values).depth_correlations
    assert found is not None
    assert found.values_depth.rho == pytest.approx(spearmanr(range(BLOCKS), values).statistic)
    assert found.values_depth.n_blocks == BLOCKS
    assert found.measured is None


def test_names_and_not_positions_say_where_a_block_lies() -> None:
    allocation = made([0.1 + 0.05 * b for b in range(BLOCKS)])
    mixed = replace(allocation, shares=tuple(sorted(allocation.shares, key=lambda s: s.name)))
    assert [s.unit for s in mixed.shares][:4:2] == ["model.layers.0", "model.layers.1"]
    assert mixed.shares[4].unit == "model.layers.10"
    assert mixed.depth_correlations == allocation.depth_correlations
    assert allocation.depth_correlations is not None
    assert allocation.depth_correlations.values_depth.rho == 1


def test_two_stacks_each_begin_at_their_first_block() -> None:
    found = made([0.1 + 0.05 * b for b in range(6)], stacks=("encoder.layers", "decoder.layers"))
    assert found.depth_correlations is not None
    assert found.depth_correlations.values_depth.rho == pytest.approx(1)
    assert found.depth_correlations.values_depth.n_blocks == 12


def test_layers_in_no_block_have_no_depth() -> None:
    allocation = made([0.1 + 0.05 * b for b in range(BLOCKS)])
    odd = [LayerValue(name, 0.9, name, None, 500) for name in ("lm_head", "stem.conv")]
    assert replace(allocation, shares=(*odd, *allocation.shares)).depth_correlations == (
        allocation.depth_correlations
    )


@pytest.mark.parametrize("allocation", [made([0.5] * BLOCKS), made([0.1, 0.2, 0.3])])
def test_uniform_ratios_and_few_blocks_have_no_number_and_no_words(allocation: Any) -> None:
    assert allocation.depth_correlations is None
    assert "depth" not in allocation.summary()


def test_alpha_is_what_was_measured_where_all_units_have_one() -> None:
    alpha = list(np.random.default_rng(1).uniform(1.5, 4, BLOCKS))
    values = list(np.random.default_rng(2).uniform(0.2, 0.8, BLOCKS))
    given = {"score": {f"model.layers.{b}": 9.0 - b for b in range(BLOCKS)}}
    found = made(values, alpha=alpha, settings=given).depth_correlations
    assert found is not None
    assert found.measured == "alpha"
    assert found.measured_depth is not None
    assert found.measured_depth.rho == pytest.approx(spearmanr(range(BLOCKS), alpha).statistic)
    assert found.values_measured is not None
    assert found.values_measured.rho == pytest.approx(spearmanr(values, alpha).statistic)


def test_a_setting_with_a_number_per_unit_is_what_was_measured() -> None:
    shares = {f"model.layers.{b}": float((5 * b) % BLOCKS) for b in range(BLOCKS)}
    values = [0.7 - 0.02 * share for share in shares.values()]
    settings = {"rule": "owl", "m": 5.0, "bounds": [0, 0.9], "outlier_percent": shares}
    allocation = made(values, settings=settings)
    found = allocation.depth_correlations
    assert found is not None
    assert found.measured == "outlier percent"
    assert found.values_measured is not None
    assert found.values_measured.rho == pytest.approx(-1)
    assert "in the reverse order of outlier percent" in allocation.summary()
    for lacking in ({**shares, "model.layers.3": None}, {"model.layers.0": 1.0}, {"a": "b"}):
        other = made(values, settings={"outlier_percent": lacking}).depth_correlations
        assert other is not None
        assert other.measured is None


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("sparsity", "The ratios rise with depth"),
        ("bits", "The bit widths rise with depth"),
        ("lr", "The learning rates rise with depth"),
        ("weight-decay", "The weight decays rise with depth"),
        ("toy", "The values rise with depth"),
    ],
)
def test_the_summary_names_the_values_and_draws_the_line(target: str, words: str) -> None:
    text = made([0.1 + 0.05 * b for b in range(BLOCKS)], target=target).summary()
    assert words in text
    assert "A straight line over depth, which reads no weights" in text


def test_published_alphas_of_llama_follow_depth() -> None:
    """The block means of LLaMA-7B, which issue 14 gives as 0.80 for whole matrices."""
    allocation = st.allocate(llama("llama-7b", "alpha_full"), target="sparsity", budget=0.7)
    found = allocation.depth_correlations
    assert found is not None
    assert found.measured_depth is not None
    assert found.measured_depth.rho == pytest.approx(0.80, abs=0.005)
    assert found.values_measured is not None
    assert found.values_measured.rho == pytest.approx(1)
    assert found.values_depth is not None
    assert found.values_depth.rho == pytest.approx(found.measured_depth.rho)
    assert "They are in the order of alpha, whose rank correlation with depth is 0.80" in (
        allocation.summary()
    )


def test_bits_go_by_more_than_alpha_and_say_what_each_explains() -> None:
    rng = np.random.default_rng(3)
    layers = [
        layer(
            f"model.layers.{b}.mlp.{kind}_proj",
            2 + rng.random(),
            weight_var=10 ** rng.uniform(-4, 0),
        )
        for b in range(24)
        for kind in ("up", "gate", "down")
    ]  # fmt: skip
    text = st.allocate(results(*layers), target="bits", budget=3.5).summary()
    assert "Given depth, alpha explains" in text
    assert "Given alpha, depth explains" in text


def test_files_keep_their_format(tmp_path: Path) -> None:
    allocation = st.allocate(transformer(8), target="sparsity", budget=0.5)
    stored = json.loads(allocation.save(tmp_path / "a.json").read_text())
    assert not [key for key in stored if "depth" in key]
    again = st.Allocation.load(tmp_path / "a.json")
    assert again.depth_correlations == allocation.depth_correlations
    assert again.summary() == allocation.summary()


@pytest.mark.parametrize(
    ("settings", "alone"),
    [
        ({"by": "depth:first"}, True),
        ({"by": "first+depth:rising"}, True),
        ({"by": "ends+depth:rising"}, True),
        ({"rule": "depth-kind", "form": "first"}, True),
        ({"by": "depth:first+alpha"}, False),
        ({"by": "alpha+depth:first"}, False),
        ({"by": "ends+alpha"}, False),
        ({"by": "variance"}, False),
        ({}, False),
    ],
)
def test_only_a_rule_of_depth_alone_has_no_correlation_with_depth(
    settings: Any, alone: bool
) -> None:
    values = list(np.random.default_rng(1).uniform(0.2, 0.8, BLOCKS))
    assert (made(values, settings=settings).depth_correlations is None) == alone
