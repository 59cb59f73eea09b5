"""The cost model's fit, and the shapes of the models that it is applied to."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import scaling
from benchmarks.model_shapes import MODELS, layers_of
from spectail.measuring.cost import Cost, Rates


def test_rates_and_the_error_are_recovered_from_times_that_they_made() -> None:
    rng = np.random.default_rng(0)
    truth = Rates(layer=2e-3, weight=1e-8, reread=5e-10, window=1e-4, tridiagonal=2e-8, flop=4e-11)
    timed = []
    for _ in range(60):
        side, windows = int(rng.integers(64, 1024)), int(rng.integers(1, 40))
        weights = int(rng.integers(1, 30)) * side**2
        reread = weights * float(rng.integers(5, 40))
        flops = windows * 7 / 3 * side**3
        cost = Cost(1, weights, reread, windows, windows * float(side) ** 2, flops)
        noise = rng.uniform(0.95, 1.05)
        timed.append(({"seconds": noise * cost.seconds(truth)}, cost))
    rates, error = scaling._fitted(timed)
    assert rates.flop == pytest.approx(truth.flop, rel=0.1)
    assert rates.reread == pytest.approx(truth.reread, rel=0.3)
    assert error["90 %"] < 0.08
    assert error["layers"] == 60


@pytest.mark.parametrize(
    ("name", "weights"),
    # What the models' papers and model cards say, in billions.
    [("7B", 6.7), ("70B", 69), ("405B", 405), ("1T mixture", 1026)],
)
def test_shapes_add_up_to_the_size_of_the_model(name: str, weights: float) -> None:
    layers = layers_of(MODELS[name])
    assert sum(layer.numel for layer in layers) / 1e9 == pytest.approx(weights, rel=0.01)
    assert len({layer.name for layer in layers}) == len(layers)


def test_it_computes_the_models(tmp_path: Path) -> None:
    path = tmp_path / "scaling.json"
    benchmarks.main(["scaling", "--no-workers", "--quick", "--result", str(path)])
    results = json.loads(path.read_text())["results"]
    small, large = results["computed"]["7B"], results["computed"]["405B"]
    assert small["tiles"]["gigabytes read"] == 13
    assert large["tiles"]["core hours"] > small["tiles"]["core hours"]
    assert small["tolerance 1 %"]["core hours"] < small["tiles"]["core hours"]
    minutes = large["tiles"]["minutes by nodes"]
    assert minutes["4"] == pytest.approx(minutes["1"] / 4, rel=0.05)
