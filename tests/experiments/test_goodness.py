"""The simulation behind the p-values of the power-law fit agrees with the quantiles in the
module."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from experiments.goodness import __main__ as goodness
from spectail.core.goodness import _CHANCES, _DISTANCES, ks_p_value
from spectail.core.tails import fit_from


def test_the_quick_run_prints_quantiles_that_agree_within_sampling_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    goodness.main(["--quick"])
    rows = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == len(_CHANCES) - 1
    for row, chance, distance in zip(rows, _CHANCES[1:], _DISTANCES[1:], strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert (float(cells[0]), float(cells[1])) == (chance, distance)
        simulated, error = (float(number) for number in cells[2].split(" ± "))
        assert abs(simulated - distance) < 4 * error + 0.002, cells


@pytest.mark.parametrize("n", [50, 1000])
def test_the_quantiles_in_the_module_are_exceeded_as_often_as_it_says(n: int) -> None:
    draws = 20_000
    distances = goodness.scaled_distances(n, draws, seed=1)
    for chance, distance in zip(_CHANCES[1:], _DISTANCES[1:], strict=True):
        exceeded = float((distances > distance).mean())
        sampling = 4 * math.sqrt(chance * (1 - chance) / draws) + 1 / draws
        shift = 0.01 if n == 50 else 0.001  # how well the finite-size correction holds
        slope = 3.35 * 2 * distance * chance  # steepest fall of the chance with the distance
        assert abs(exceeded - chance) < sampling + shift * slope, (chance, exceeded)


def test_the_simulated_distance_is_that_of_the_module() -> None:
    n = 200
    distances = goodness.ks_distances(np.random.default_rng(0), n, 5)
    tails = np.exp(np.sort(np.random.default_rng(0).exponential(size=(5, n)), axis=1))
    for tail, distance in zip(tails, distances, strict=True):
        assert fit_from(tail, 0).ks == pytest.approx(distance, rel=1e-9)
        assert 0 < ks_p_value(distance, n) <= 1
