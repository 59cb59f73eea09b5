"""HTMuon against plain formulas, the comparison of optimizers, and a quick run that goes on."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg

from experiments.language.htmuon import (
    KINDS,
    OPTIMIZERS,
    PAIRS,
    Results,
    Settings,
    key,
    main,
    tables,
    with_error,
)
from experiments.language.spectral import SpectralPower, with_power
from experiments.language.train import Recipe, llama, optimizers

SHAPES = [(6, 6), (4, 9), (9, 4), (1, 5)]


def drawn(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("shape", SHAPES)
def test_power_0_is_the_orthogonal_factor_at_the_size_of_muon(shape: Any) -> None:
    matrix = drawn(*shape)
    factor = linalg.polar(matrix.numpy())[0]
    assert with_power(matrix, 0).numpy() == pytest.approx(0.2 * math.sqrt(max(shape)) * factor)


@pytest.mark.parametrize("shape", SHAPES)
def test_power_1_is_the_matrix_itself_up_to_scale(shape: Any) -> None:
    matrix = drawn(*shape).numpy()
    scaled = 0.2 * matrix / np.sqrt((matrix**2).mean())
    assert with_power(torch.from_numpy(matrix), 1).numpy() == pytest.approx(scaled)


@pytest.mark.parametrize("power", [0.125, 0.5])
@pytest.mark.parametrize("shape", [(5, 5), (4, 9)])
def test_any_power_is_that_of_the_gram_matrix(shape: Any, power: float) -> None:
    matrix = drawn(*shape).numpy()
    found = with_power(torch.from_numpy(matrix), power).numpy()
    by_gram = linalg.fractional_matrix_power(matrix @ matrix.T, (power - 1) / 2) @ matrix
    assert found / np.linalg.norm(found) == pytest.approx(by_gram / np.linalg.norm(by_gram))
    assert np.sqrt((found**2).mean()) == pytest.approx(0.2)


def test_the_scale_of_a_gradient_does_not_matter() -> None:
    matrix = drawn(4, 6).float()
    for scale in (1e-30, 1e10):
        for power in (0.125, 1):
            found = with_power(matrix * scale, power)
            torch.testing.assert_close(found, with_power(matrix, power), rtol=0, atol=1e-5)


def test_no_gradient_moves_nothing_and_a_diverged_one_stays_so() -> None:
    assert not with_power(torch.zeros(3, 4), 0.125).any()
    assert with_power(torch.full((3, 4), torch.inf), 0.125).isnan().all()


def test_a_step_is_nesterov_momentum_and_decoupled_decay() -> None:
    gradients = [drawn(4, 6, seed) for seed in (1, 2)]
    weight = torch.nn.Parameter(drawn(4, 6, 3))
    expected, mean = weight.detach().numpy().copy(), np.zeros((4, 6))
    optimizer = SpectralPower([weight], lr=0.1, power=1, weight_decay=0.5, momentum=0.9)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient.numpy()
        update = 0.9 * mean + 0.1 * gradient.numpy()
        update *= 0.2 / np.sqrt((update**2).mean())
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * update
        assert weight.detach().numpy() == pytest.approx(expected)


def test_power_0_steps_as_torchs_muon_does() -> None:
    # torch's iterations leave singular values between about 0.7 and 1.2.
    moved = {}
    for kind in ("Muon", "exact Muon", "HTMuon"):
        torch.manual_seed(0)
        model = llama(64, 1, 16)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        recipe = Recipe(optimizer=kind, lr=0.01, seed=0, steps=1, batch=2, length=16, every=1)
        for optimizer in optimizers(model, recipe):
            optimizer.step()
        inside = [(n, p) for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
        moved[kind] = torch.cat([(p.detach() - before[n]).flatten() for n, p in inside])
    muon, exact, heavy = moved.values()
    assert torch.cosine_similarity(muon, exact, dim=0) > 0.95
    assert 0.8 < muon.norm() / exact.norm() < 1.2
    assert heavy.norm() / exact.norm() == pytest.approx(1, rel=1e-3)
    assert torch.cosine_similarity(heavy, exact, dim=0) < 0.999


def run(loss: float | None, alpha: float) -> dict[str, Any]:
    names = [f"layers.0.{kind}_proj" for kind in KINDS]
    layers = {
        name: {"alpha": alpha + gap, "alpha_se": 0.1, "alpha_null": 2.0}
        for name, gap in zip(names, (0.3, 0.2, 0.1, 0.0, -0.1, -0.2, -0.3), strict=True)
    }
    return {"validation": loss, "median": layers, "top 10 %": layers if loss else {}}


def results(losses: dict[float, float | None], seeds: int = 3) -> Results:
    done = {
        key(optimizer, lr, seed): run(
            loss and loss + 0.01 * seed, 1 + OPTIMIZERS.index(optimizer) + 0.001 * seed**2
        )
        for optimizer in OPTIMIZERS
        for lr, loss in losses.items()
        for seed in range(seeds)
    }
    return Results({"environment": {}, **done}, Settings(lrs=tuple(losses), seeds=4))


def test_the_best_rate_has_the_least_mean_loss_and_a_diverged_one_never() -> None:
    found = results({0.1: None, 0.2: 2.0, 0.3: 1.5, 0.4: 1.7})
    assert found.seeds == 3
    assert found.best("AdamW") == 0.3
    assert found.values("HTMuon", 0.2, "median") == pytest.approx([4.0, 4.001, 4.004])
    assert found.null("top 10 %") == 2
    text = tables(found)["htmuon"]
    assert "48 of 64 runs are done; the same command goes on; complete seeds: 3" in text
    assert "| **AdamW, 0.3** | 1.510 ± 0.006 | 1.002 ± 0.001 | 1.00 ± 0.00 |" in text
    assert "| AdamW, 0.1 | diverged | diverged | diverged |" in text
    assert (
        "| HTMuon less exact Muon | each its best | +0.000 ± 0.000 | **+1.000 ± 0.000** |" in text
    )
    assert text.count("| 0.1 | diverged | diverged | diverged |") == len(PAIRS)
    assert "| gate, median | 0.902 ± 0.001 | 1.902 ± 0.001 | 2.902 ± 0.001 |" in text
    assert "| random matrices |  | 2.000 | 2.00 |" in text


def test_a_difference_is_bold_where_its_interval_excludes_0() -> None:
    # The mean of 1, 2, 3 is 3.46 standard errors above 0; with 3 seeds 4.30 are needed.
    assert with_error([1, 2, 3], 2, difference=True) == "+2.00 ± 0.58"
    assert with_error([2, 3, 4], 2, difference=True) == "**+3.00 ± 0.58**"
    assert with_error([-2, -3, -4], 2, difference=True) == "**-3.00 ± 0.58**"
    assert with_error([2, 3, 4], 2) == "3.00 ± 0.58"
    assert with_error([2], 1, difference=True) == "+2.0"


def test_a_quick_run_stops_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", "--out", str(tmp_path)]
    assert main([*arguments, "--seconds", "0"]) == 3
    assert "0 of 8 runs are done; the same command goes on. No seed" in capsys.readouterr().out
    assert main(arguments) == 0
    whole = capsys.readouterr().out.split("runs are done")[1]
    journal = tmp_path / "quick" / "htmuon.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 2 + 8
    journal.write_text("".join(lines[:8]) + lines[8][:40])
    assert main([*arguments, "--seconds", "0"]) == 3
    assert "6 of 8 runs are done; the same command goes on; complete" in capsys.readouterr().out
    assert main(arguments) == 0
    assert capsys.readouterr().out.split("runs are done")[1] == whole
    again = journal.read_text().splitlines(keepends=True)
    assert again[2:] == lines[2:]
    _, run = json.loads(again[-1])
    assert len(run["median"]) == len(run["top 10 %"]) == 7
