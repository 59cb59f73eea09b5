"""What ``analyze`` prints about depth: one line, or none where there is nothing to say."""

import io
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from spectail.analysis import Analysis
from spectail.cli.runner import show
from spectail.cli.terminal import Terminal
from tests.allocation.conftest import layer, results


def printed(alphas: Any) -> tuple[Analysis, list[Any]]:
    """The analysis of one layer per block, and the lines that a narrow terminal shows."""
    found = results(*(layer(f"layers.{b}.mlp.up_proj", a) for b, a in enumerate(alphas)))
    analysis = Analysis(found.run, found.layers)
    shown = io.StringIO()
    show(Terminal(file=shown, width=40), analysis)
    lines = shown.getvalue().splitlines()
    return analysis, [line for line in lines if "depth" in line]


@pytest.mark.parametrize("slope", [0.2, -0.2, 0.0])
def test_alpha_with_depth_is_one_line(slope: float) -> None:
    alphas = 5 + slope * np.arange(16) + np.random.default_rng(0).standard_normal(16)
    analysis, lines = printed(alphas)
    found = analysis.depth_correlation
    assert found is not None
    assert len(lines) == 1
    assert lines[0].startswith(f"Depth: {found.with_depth('alpha')[:-1]}; ")
    assert found.rho == pytest.approx(spearmanr(range(16), alphas).statistic)
    assert f"rank correlation {spearmanr(range(16), alphas).statistic:.2f}" in lines[0]


@pytest.mark.parametrize("alphas", [[2.0, 3.0, 4.0], [2.0] * 8])
def test_few_and_equal_blocks_print_no_line(alphas: Any) -> None:
    analysis, lines = printed(alphas)
    assert analysis.depth_correlation is None
    assert lines == []
