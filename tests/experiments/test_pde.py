"""The experiment on differential equations: solver, data files, networks,
training, and a whole quick run."""

import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spectail as st
from experiments.common import Journal
from experiments.pde.__main__ import (
    ADAM,
    FULL,
    QUICK,
    TUNED,
    Cell,
    Experiment,
    Settings,
    cells,
    main,
    methods,
    problems_of,
    search_key,
    searched,
    tables,
)
from experiments.pde.data import INSIDE, WHEEL, Scale, darcy, drawn, reaction
from experiments.pde.networks import UNet, fno
from experiments.pde.solver import Equation, random_fields, solve
from experiments.pde.train import Recipe, error_of_mean, fit, nrmse

SCRATCH = Cell("reaction", 4, "U-Net")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("pde")
    assert main(["--quick", "--out", str(folder)]) == 0
    return folder / "quick"


@pytest.fixture
def experiment(tmp_path: Path) -> Any:
    return Experiment(problems_of(QUICK, tmp_path), QUICK, Journal.open(tmp_path / "j", {}), "cpu")


# The solver


def test_diffusion_alone_damps_a_sine_as_it_should() -> None:
    x = np.arange(32) / 32
    wave = 0.5 + 0.3 * np.sin(2 * math.pi * (2 * x[:, None] + 3 * x[None, :]))
    found = solve(wave, Equation(diffusivity=0.01, rate=0, time=0.7), steps=3)
    damping = math.exp(-0.01 * 0.7 * (2 * math.pi) ** 2 * (2**2 + 3**2))
    assert 0.02 < damping < 0.2
    np.testing.assert_allclose(found, 0.5 + damping * (wave - 0.5), atol=1e-13)


def test_growth_alone_is_logistic() -> None:
    start = np.stack([np.full((8, 8), u) for u in (0.0, 0.1, 0.6, 1.0)])
    found = solve(start, Equation(diffusivity=0.3, rate=2, time=1.5), steps=4)
    growth = math.exp(2 * 1.5)
    for u, field in zip((0.0, 0.1, 0.6, 1.0), found, strict=True):
        np.testing.assert_allclose(field, u * growth / (1 - u + u * growth), atol=1e-13)


def test_both_together_agree_with_small_explicit_steps() -> None:
    start = random_fields(1, 16, seed=1)[0]
    equation = Equation(diffusivity=0.002, rate=2, time=0.5)
    square = (2 * math.pi) ** 2 * (
        np.fft.fftfreq(16, 1 / 16)[:, None] ** 2 + np.fft.fftfreq(16, 1 / 16)[None, :] ** 2
    )
    u, step = start, 0.5 / 4000
    for _ in range(4000):
        u = u + step * (np.fft.ifft2(-0.002 * square * np.fft.fft2(u)).real + 2 * u * (1 - u))
    errors = [np.abs(solve(start, equation, steps=n) - u).max() for n in (2, 4, 50)]
    assert errors[2] < 2e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)  # second order


def test_fields_lie_between_0_and_1_and_repeat() -> None:
    fields = random_fields(50, 32, seed=3)
    assert fields.min() > 0
    assert fields.max() < 1
    assert fields.std() > 0.1
    assert np.array_equal(fields, random_fields(50, 32, seed=3))
    assert not np.allclose(fields, random_fields(50, 32, seed=4))
    assert np.abs(np.diff(fields, axis=2)).mean() < 0.3 * fields.std()  # smooth


# Data


def test_parts_are_apart_and_follow_the_equation() -> None:
    equation = Equation(diffusivity=0.001, rate=2)
    problem = reaction(equation, (5, 3, 2), side=16)
    parts = (problem.train, problem.validation, problem.test)
    assert [len(inputs) for inputs, _ in parts] == [5, 3, 2]
    start = random_fields(10, 32, seed=0)
    inputs, solutions = (
        torch.cat(both)[:, 0].double().numpy() for both in zip(*parts, strict=True)
    )
    np.testing.assert_allclose(inputs, start[:, ::2, ::2], atol=1e-6)
    np.testing.assert_allclose(solutions, solve(start, equation)[:, ::2, ::2], atol=1e-6)


def test_a_draw_takes_pairs_together_by_the_seed() -> None:
    pairs = torch.arange(20.0), 10 * torch.arange(20.0)
    inputs, solutions = drawn(pairs, 6, seed=1)
    assert torch.equal(solutions, 10 * inputs)
    assert len(inputs.unique()) == 6
    assert not torch.equal(inputs, drawn(pairs, 6, seed=2)[0])


@pytest.mark.parametrize("packed", [True, False])
def test_darcy_is_read_from_the_wheel_or_its_files(tmp_path: Path, packed: bool) -> None:
    x = torch.arange(210.0)[:, None, None].expand(210, 4, 4)
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as wheel:
        for part, n in (("train", 210), ("test", 7)):
            name = f"darcy_{part}_16.pt"
            torch.save({"x": x[:n] > 3, "y": x[:n].clone()}, tmp_path / name)
            wheel.write(tmp_path / name, INSIDE + name)
            if packed:
                (tmp_path / name).unlink()
    problem = darcy(tmp_path)
    assert problem.train[0].shape == (10, 1, 4, 4)
    assert problem.train[0].dtype == torch.float32
    assert problem.train[1][:, 0, 0, 0].tolist() == list(range(10))
    assert problem.validation[1][0, 0, 0, 0] == 10
    assert len(problem.test[0]) == 7


def test_missing_data_says_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"pip download neuraloperator==0\.3\.0 --no-deps"):
        darcy(tmp_path)


# Networks and training


def test_the_unet_gives_fields_and_has_its_layers() -> None:
    network = UNet(16)
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 1, 16, 16)
    assert sum(p.ndim > 1 for p in network.parameters()) == 2 * 5 + 1


def test_the_fno_shows_its_spectral_weights_to_the_balancer() -> None:
    pytest.importorskip("neuralop")
    network = fno(20)
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 1, 16, 16)
    balanced = {}
    for method, rule in methods("FNO", Settings()).items():
        if rule is not None:
            optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
            balancer = st.Balancer(network, optimizer, rule, every=None)
            balancer.update()
            balanced[method] = set(balancer.history.table["name"])
            balancer.remove()
    assert len(balanced) == 4
    for name in ("whole matrices", "windows"):
        spectral = balanced[f"TB_Sigmoid, {name}, spectral too"] - balanced[f"TB_Sigmoid, {name}"]
        assert spectral == {f"fno_blocks.convs.{i}" for i in range(4)}
    assert balanced["TB_Sigmoid, windows"] == balanced["TB_Sigmoid, whole matrices"]
    assert len(balanced["TB_Sigmoid, windows"]) == 4 * 3 + 2


def test_a_missing_neuraloperator_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "neuralop.models", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps neuraloperator==2\.0\.0"):
        fno(20)


def test_errors_are_relative_by_pair() -> None:
    true = torch.ones(2, 1, 3, 3) * torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)
    same = torch.nn.Identity()
    same.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
    pairs = true * torch.tensor([1.1, 1.3]).view(2, 1, 1, 1), true
    assert nrmse(same, pairs, Scale((0, 1), (0, 1))) == pytest.approx(0.2)
    assert nrmse(same, pairs, Scale((1, 2), (1, 2))) == pytest.approx(
        0.2
    )  # the scale of both is the same here
    assert error_of_mean((true[:1], true[:1]), pairs) == pytest.approx(0.45)


def test_training_learns_and_repeats_and_follows_its_rule() -> None:
    problem = reaction(Equation(diffusivity=0.001, rate=2), (24, 1, 8), side=8)
    recipe = Recipe(steps=40, batch=8, lr=0.01, seed=0, every=10)
    rule = st.TBSigmoid(spec=st.Spec(window=16), include_first_last=True, min_eigenvalues=12)
    found = []
    for given in (None, None, rule):
        torch.manual_seed(0)
        network = UNet(16)
        found.append(nrmse(network, problem.test, fit(network, problem.train, recipe, given)))
    assert found[0] == found[1]
    assert found[0] < 0.6 * error_of_mean(problem.train, problem.test)
    assert found[2] != found[0]


# The experiment


def test_every_method_chooses_from_the_same_grid(experiment: Any) -> None:
    experiment.settings = replace(QUICK, lrs=(0.1, 0.2), scales=(0.5, 1.0))
    tried = {method: experiment.tried(SCRATCH, method) for method in methods("FNO", QUICK)}
    assert len(tried) == 5
    assert tried.pop(ADAM) == [(0.1, None), (0.2, None)]
    assert all(grid == [(0.1, 0.5), (0.1, 1.0), (0.2, 0.5), (0.2, 1.0)] for grid in tried.values())
    for i, (lr, scale) in enumerate(tried["TB_Sigmoid, windows"]):
        key = search_key(SCRATCH, "TB_Sigmoid, windows", lr, scale)
        experiment.journal.add(key, {"validation": 5 - i % 3, "test": i})
    assert experiment.chosen(SCRATCH, "TB_Sigmoid, windows") == (0.2, 0.5)
    experiment.settings = replace(experiment.settings, tuning_lrs=(0.01,))
    assert [lr for lr, _ in experiment.tried(replace(SCRATCH, task=TUNED), ADAM)] == [
        0.01,
        0.1,
        0.2,
    ]
    assert experiment.chosen(replace(SCRATCH, n=8), "TB_Sigmoid, windows") == (0.2, 0.5)


def test_adam_at_the_same_rate_is_trained_only_where_it_is_not_known(experiment: Any) -> None:
    experiment.settings = replace(QUICK, lrs=(0.002, 0.005))
    for method in methods("U-Net", QUICK):
        for lr, scale in experiment.tried(SCRATCH, method):
            liked = (0.002 if method == "TB_Sigmoid, windows" else 0.005) == lr
            experiment.journal.add(
                search_key(SCRATCH, method, lr, scale), {"validation": 0.1 if liked else 0.2}
            )
    experiment.journal.add(f"final | {SCRATCH} | {ADAM} | 0", {"lr": 0.005, "test": 0.125})
    assert experiment.same_rate(SCRATCH, "TB_Sigmoid, whole matrices", 0) == {
        "lr": 0.005,
        "test": 0.125,
    }
    trained = experiment.same_rate(SCRATCH, "TB_Sigmoid, windows", 0)
    assert trained["lr"] == 0.002
    assert trained["training"] == experiment.train(SCRATCH, 0.002, None, 0)[1]["training"]
    experiment.journal.add(
        f"same rate | {SCRATCH} | TB_Sigmoid, windows | 0", {"lr": 0.002, "test": 0.375}
    )
    assert experiment.same_rate(SCRATCH, "TB_Sigmoid, windows", 0)["test"] == 0.375


def test_settings_are_searched_where_the_settings_say() -> None:
    few, many = replace(SCRATCH, n=5), replace(SCRATCH, n=100)
    assert searched(many, Settings()) == few
    assert searched(many, FULL) == many
    assert many in cells(FULL)


def test_fine_tuning_starts_from_the_source_and_leaves_it_untouched(experiment: Any) -> None:
    first = experiment.pretrained("U-Net", 0)
    with torch.no_grad():
        for p in first.parameters():
            p.zero_()
    again, fresh = experiment.pretrained("U-Net", 0), experiment.fresh("U-Net", 0)
    assert not torch.equal(again.head.weight, first.head.weight)
    assert not torch.equal(again.head.weight, fresh.head.weight)
    scratch, tuned = (
        experiment.search(replace(SCRATCH, task=task), 0.005, None) for task in ("reaction", TUNED)
    )
    assert scratch != tuned
    assert "test" not in scratch


def test_a_quick_run_trains_every_method_with_every_seed(quick: Any) -> None:
    runs = json.loads((quick / "results.json").read_text())["runs"]
    finals = {key: run for key, run in runs.items() if key.startswith("final")}
    assert len(finals) == 3 * 3 * 2
    assert all(run["test"] > 0 and run["alphas"] for run in finals.values())
    assert not any("test" in run for key, run in runs.items() if key.startswith("search"))
    assert (quick / "pde.png").read_bytes().startswith(b"\x89PNG")


def test_tables_pair_the_seeds() -> None:
    settings = replace(QUICK, amounts=(("reaction", (4,)),))
    done: dict[str, Any] = {f"mean | {SCRATCH} | {seed}": 0.5 for seed in range(2)}
    for method, tests in (
        (ADAM, (0.1, 0.3)),
        ("TB_Sigmoid, whole matrices", (0.1, 0.2)),
        ("TB_Sigmoid, windows", (0.2, 0.4)),
    ):
        for seed, test in enumerate(tests):
            scale = None if method == ADAM else 0.5
            done[f"final | {SCRATCH} | {method} | {seed}"] = {
                "test": test,
                "lr": 0.01,
                "scale": scale,
                "alphas": {"a": 2.0, "b": 2.0 + test * 2**0.5},
            }
            done[f"same rate | {SCRATCH} | {method} | {seed}"] = {"test": 0.2, "lr": 0.01}
    found = tables(done, settings)
    assert "| U-Net: Adam | 20.00 ± 14.14 |" in found["results"]
    assert "| the mean training solution | 50.00 ± 0.00 |" in found["results"]
    assert "| U-Net: TB_Sigmoid, whole matrices | -5.00 ± 7.07 |" in found["differences"]
    assert "| U-Net: TB_Sigmoid, windows | +10.00 ± 0.00 |" in found["differences"]
    assert "| U-Net: TB_Sigmoid, windows | +10.00 ± 14.14 |" in found["same rate"]
    assert "| U-Net: TB_Sigmoid, windows | 0.30 ± 0.14 |" in found["spread"]
    assert "| U-Net: Adam | 0.01 |" in found["settings"]
    assert "| U-Net: TB_Sigmoid, windows | 0.01, 0.5 |" in found["settings"]


def test_darcy_is_asked_for_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=Path(WHEEL).name):
        main(["--data", str(tmp_path), "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
