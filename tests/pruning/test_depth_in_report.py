"""What ``prune`` says about depth: the numbers of its allocation, in
words and in the stored report."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import spectail as st
from spectail.allocation.allocation import Allocation, LayerValue


def stack(blocks: int) -> nn.Module:
    """A model of blocks of one matrix each; magnitude needs no more."""
    model = nn.Module()
    model.layers = nn.ModuleList(
        nn.ModuleDict({"up_proj": nn.Linear(16, 16)}) for _ in range(blocks)
    )
    return model


def rising(blocks: int) -> Allocation:
    """Ratios that rise with the block."""
    shares = [
        LayerValue(f"layers.{b}.up_proj", 0.3 + 0.05 * b, f"layers.{b}", None, 256)
        for b in range(blocks)
    ]
    return Allocation(target="sparsity", budget=0.5, settings={}, shares=tuple(shares))


def test_the_report_holds_what_the_allocation_says(tmp_path: Path) -> None:
    allocation = rising(6)
    report = st.prune(stack(6), allocation)
    assert report.depth == allocation.depth_correlations
    assert report.depth is not None
    assert report.depth.values_depth.n_blocks == 6
    assert allocation.describe_depth()[0] in report.summary().splitlines()
    stored = json.loads(report.save(tmp_path / "report.json").read_text())
    assert stored["depth"] == report.depth.to_dict()
    assert stored["depth"]["values_depth"]["rho"] == pytest.approx(1)


@pytest.mark.parametrize("allocation", [0.5, rising(3), dict(rising(6))])
def test_one_ratio_few_blocks_and_a_plain_mapping_say_nothing(
    allocation: Any, tmp_path: Path
) -> None:
    blocks = 6 if isinstance(allocation, float) else len(allocation)
    report = st.prune(stack(blocks), allocation)
    assert report.depth is None
    assert "depth" not in report.summary()
    assert json.loads(report.save(tmp_path / "report.json").read_text())["depth"] is None
