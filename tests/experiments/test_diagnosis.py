"""The diagnosis experiment: faults are what they say, numbers are spectail's,
scores are those of slow oracles."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

import spectail as st
from experiments.diagnosis import faults, models, scores, train
from experiments.diagnosis.__main__ import FAULTS, main
from experiments.diagnosis.draw import shape_correlation
from experiments.diagnosis.models import Subject
from experiments.diagnosis.numbers import NUMBERS, measure_all, measure_windows
from experiments.diagnosis.scores import Measured
from experiments.stability.catalogue import Model, chosen_layers
from spectail.models.open import open_source


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("diagnosis")
    assert main(["--quick", "--out", str(folder)]) == 0
    return folder / "quick"


def drawn(*shape: Any, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state(name: str) -> Any:
    return next(found for found in faults.faults(faults.glorot) if found.name == name)


def test_a_quick_run_scores_every_number_fault_view_and_side(quick: Any) -> None:
    results = json.loads((quick / "results.json").read_text())
    model = results["models"]["small Llama"]
    assert model["planted"] == 8
    assert len(model["layers"]) == len(model["healthy"]["entropy"]) == 36
    for view in scores.VIEWS:
        for side in scores.SIDES:
            found = model["aucs"][view][side]
            assert list(found) == list(NUMBERS)
            assert all(
                None not in row[: results["states"].index("cut to a quarter")]
                for row in found.values()
            )
            assert set(results["trained"]["seed 0"]["slow"]["aucs"][view][side]) == set(NUMBERS)
    assert results["states"][: len(FAULTS)] == results["faults"] == list(FAULTS)
    row = results["states"].index("outlier row x 30")
    assert model["aucs"]["all kinds"]["one-sided"]["largest eigenvalue"][row] < 0.1
    assert model["aucs"]["by kind"]["two-sided"]["largest eigenvalue"][row] > 0.9
    assert (
        len(model["aucs by kind of layer"]["all kinds"]["two-sided"]["entropy"])
        == len(model["kinds"])
        == 8
    )
    text = (quick / "tables.md").read_text()
    assert text.count("\n| null_z |") == 5
    assert (quick / "diagnosis.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_run_is_not_repeated_and_a_stopped_one_goes_on(
    quick: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (quick / "diagnosis.jsonl").read_text()
    out = ["--quick", "--out", str(quick.parent)]
    assert main(out) == 0
    assert (quick / "diagnosis.jsonl").read_text() == kept
    before = json.loads((quick / "results.json").read_text())
    lines = kept.splitlines(keepends=True)
    (quick / "diagnosis.jsonl").write_text("".join(lines[:-1]))
    assert main([*out, "--seconds", "0"]) == 3
    assert "run again to go on" in capsys.readouterr().out
    assert main(out) == 0
    assert json.loads((quick / "results.json").read_text()) == before


@pytest.mark.parametrize("shape", [(2, 24, 40), (1, 40, 24)])
@pytest.mark.parametrize("share", [0.5, 0.25, 0.1])
def test_low_rank_is_the_truncated_singular_value_decomposition(
    shape: tuple[int, int, int], share: float
) -> None:
    matrices = drawn(*shape)
    u, s, vt = np.linalg.svd(matrices.numpy())
    kept = round(share * 24)
    expected = u[:, :, :kept] * s[:, None, :kept] @ vt[:, :kept]
    found = state(f"rank {100 * share:g} %").change(matrices, torch.Generator())
    assert np.allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3])
def test_quantised_weights_are_the_nearest_of_few_levels(bits: int) -> None:
    matrices = drawn(2, 5, 150)
    found = state(f"quantised {bits} bits").change(matrices, torch.Generator())
    for start in (0, 64, 128):
        for old, new in zip(
            matrices[..., start : start + 64].reshape(10, -1).numpy(),
            found[..., start : start + 64].reshape(10, -1).numpy(),
            strict=True,
        ):
            levels = np.linspace(old.min(), old.max(), 2**bits)
            nearest = levels[np.abs(old[:, None] - levels).argmin(axis=1)]
            assert np.allclose(new, nearest, atol=1e-5)
    constant = torch.full((1, 2, 64), 0.7)
    assert torch.equal(faults.quantised(constant, torch.Generator(), bits), constant)


def test_noise_outliers_and_redrawn_weights_have_their_sizes() -> None:
    matrices = 3 * drawn(1, 300, 400) + 1
    made = {
        f.name: f.change(matrices, faults.generator_for("a", f.name))
        for f in faults.faults(faults.kaiming_out)
    }
    assert tuple(made) == FAULTS
    for size in (0.1, 0.3, 1):
        added = made[f"noise {size:g}"] - matrices
        assert float(added.norm() / matrices.norm()) == pytest.approx(size, rel=0.02)
    assert float(made["initialisation"].std()) == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    same = made["initialisation at the trained variance"]
    assert float(same.std()) == pytest.approx(float(matrices.std()), rel=0.02)
    assert abs(np.corrcoef(same.flatten(), matrices.flatten())[0, 1]) < 0.02
    for what, axis in (("column", 1), ("row", 0)):
        ratio = (made[f"outlier {what} x 10"] / matrices)[0]
        lines = ratio.mean(dim=1 - axis)
        assert sorted(lines.round().tolist()) == [1.0] * (len(lines) - 1) + [10.0]


def test_harmless_changes_keep_what_they_should() -> None:
    matrices = drawn(2, 8, 12)
    one, two, three = (c.change(matrices, faults.generator_for("x")) for c in faults.CONTROLS)
    assert torch.equal(one, matrices)
    assert torch.equal(three, 2 * matrices)
    assert not torch.equal(two, matrices)
    assert torch.allclose(torch.linalg.svdvals(two), torch.linalg.svdvals(matrices), atol=1e-5)
    # the same permutation for all matrices: their product with each other's transpose keeps its
    # spectrum too
    assert torch.allclose(
        torch.linalg.svdvals(two[0] @ two[1].T),
        torch.linalg.svdvals(matrices[0] @ matrices[1].T),
        atol=1e-4,
    )
    half = faults.cut(matrices, torch.Generator(), 2)
    assert half.shape == (2, 4, 12)
    assert all(any(torch.equal(line, old) for old in matrices.unbind(1)) for line in half.unbind(1))
    assert faults.cut(matrices.mT, torch.Generator(), 4).shape == (2, 12, 2)


@pytest.mark.parametrize("shape", [(96, 160), (256, 96), (96, 130, 3, 3)])
def test_numbers_are_those_of_analyze(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(1).standard_t(3, shape).astype(np.float32)
    weights = {"a.weight": torch.from_numpy(weight), "b.weight": drawn(64, 64)}
    layer = next(found for found in open_source(weights).layers if found.name == "a")
    found = measure_all(layer.read(), 64, convolution=len(shape) == 4)

    def analyzed(spec: Any, **more: Any) -> Any:
        table = st.analyze(weights, spec=spec, **more).table
        return table[table["name"] == "a"].iloc[0]

    farms = analyzed(st.presets.FARMS, full_spectrum=True)
    expected = {
        "alpha, windows": farms["alpha"],
        "alpha, windows, top 10 %": analyzed(st.presets.FARMS_TAIL)["alpha"],
        "alpha, whole, median": analyzed(st.presets.FULL)["alpha"],
        "alpha, whole, peak": analyzed(st.presets.ALPHAPRUNING)["alpha"],
        "alpha, whole, KS": analyzed(st.presets.WEIGHTWATCHER)["alpha"],
        "null_z": farms["null_z"],
        "stable rank": farms["stable_rank"],
        "entropy": farms["entropy"],
        "Var(W)": farms["weight_var"],
        "largest eigenvalue": farms["lambda_max"],
    }
    assert farms["window_rows"] == 64
    assert list(expected) == list(NUMBERS)
    assert set(found) == set(NUMBERS)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert measure_windows(layer.read(), 64).items() <= found.items()


def test_numerical_zeros_are_kept_where_alphaprunings_code_keeps_them() -> None:
    matrices = state("rank 25 %").change(drawn(1, 128, 96).double(), torch.Generator())
    expected = st.tail_fit(matrices[0], st.presets.ALPHAPRUNING)
    found = measure_all(matrices, 64, convolution=False)
    assert found["alpha, whole, peak"] == pytest.approx(expected.alpha, rel=1e-4)
    assert expected.eigenvalues.size > 90


def test_robust_z_is_the_distance_from_the_groups_median_in_deviations() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0, math.nan, 5.0, 5.0, 5.0, 9.0, 3.0])
    found = scores.robust_z(values, list("aaaaabbbbc"), least=2)
    middle, spread = 3.0, 1.4826 * 1.5  # of 1, 2, 4, 8: distances 2, 1, 1, 5
    assert found[:4] == pytest.approx((values[:4] - middle) / spread)
    assert math.isnan(found[4])
    assert found[5:9].tolist() == [0, 0, 0, math.inf]
    assert math.isnan(found[9])


def test_auc_is_the_mann_whitney_statistic() -> None:
    rng = np.random.default_rng(0)
    healthy, bad = rng.integers(0, 9, 30).astype(float), rng.integers(3, 12, 12).astype(float)
    expected = mannwhitneyu(bad, healthy).statistic / (30 * 12)
    assert np.mean([scores.auc(b, healthy) for b in bad]) == pytest.approx(expected)
    assert scores.auc(math.nan, healthy) == 0.5
    assert scores.auc(3.0, np.array([math.nan, 1.0])) == 1


def test_the_threshold_finds_its_share_of_the_faults() -> None:
    found = [float(x) for x in range(10)]
    assert scores.threshold(found, 80) == 2
    assert scores.threshold(found, 95) == 0
    assert scores.threshold([1.0, math.nan], 80) == -math.inf


def toy(values: Any, planted: Any, states: str = "fault") -> tuple[Any, str]:
    count = len(values)
    name = "entropy"
    return Measured(
        names=tuple(f"l{i}" for i in range(count)),
        kinds=("q",) * count,
        shapes=((64, 64),) * (count - 1) + ((64, 128),),
        healthy={key: np.array(values, float) for key in NUMBERS},
        at_window={32: {"alpha, windows": 10 + np.array(values, float)}},
        states={states: {i: dict.fromkeys(NUMBERS, v) for i, v in planted.items()}},
        cut_windows={states: dict.fromkeys(planted, 32)},
    ), name


def test_each_fault_is_planted_alone_and_the_medians_see_it() -> None:
    model, name = toy([1, 2, 3, 4, 5, 6, 7], {0: 9.0, 6: 4.5})
    rows = dict(scores.planted_scores(model, "fault", "by kind", name))
    for layer, value in ((0, 9.0), (6, 4.5)):
        values = [1.0, 2, 3, 4, 5, 6, 7]
        values[layer] = value
        middle = np.median(values)
        deviation = [
            (v - middle) / (1.4826 * np.median(np.abs(np.array(values) - middle))) for v in values
        ]
        assert rows[layer]["one-sided"][0] == pytest.approx(deviation[layer])
        size = np.abs(deviation)
        others = np.delete(size, layer)
        area = np.mean([(size[layer] > o) + 0.5 * (size[layer] == o) for o in others])
        assert rows[layer]["two-sided"][1] == pytest.approx(area)
    assert rows[0]["one-sided"][1] == 1


def test_an_unchanged_model_has_areas_of_one_half() -> None:
    values = np.random.default_rng(0).random(9)
    model, _ = toy(values, dict(enumerate(values)))
    found = scores.score_model(model, ["fault"])
    for view in scores.VIEWS:
        for side in scores.SIDES:
            assert [row["fault"] for row in found["aucs"][view][side].values()] == pytest.approx(
                [0.5] * 10
            )
            assert found["kinds"][view][side]["entropy"]["q"] == pytest.approx(0.5)


def test_a_cut_layer_is_compared_in_the_window_that_it_imposes() -> None:
    model, _ = toy([1, 2, 3, 4, 5, 6, 7], {3: 14.0}, "cut to a half")
    windows = dict(scores.planted_scores(model, "cut to a half", "all kinds", "alpha, windows"))
    whole = dict(scores.planted_scores(model, "cut to a half", "all kinds", "entropy"))
    assert windows[3]["two-sided"] == (0, 0)
    assert whole[3]["two-sided"][1] == 1


def test_false_alarms_are_counted_by_shape() -> None:
    model, _ = toy([1, 2, 3, 4, 5, 6, 30], {0: 20.0, 1: 20.0})
    alarms = scores.score_model(model, ["fault"])["alarms"]["all kinds"]["two-sided"]["entropy"]
    assert alarms["80"] == {"usual shape": 0.0, "unusual shape": 1.0}
    assert list(alarms) == ["80", "95"]
    assert scores.unusual(model).tolist() == [False] * 6 + [True]
    about = {"shapes": ["64x64", "64x128", "64x256"], "healthy": {"entropy": [3.0, 2.0, 1.0]}}
    assert shape_correlation(about, "entropy") == pytest.approx(1)


def test_kinds_of_few_layers_are_left_out_of_the_view_by_kind() -> None:
    values = np.arange(9.0)
    model, name = toy(values, dict(enumerate(values)))
    model = Measured(**{**vars(model), "kinds": ("q",) * 5 + ("k",) * 4})
    assert list(dict(scores.planted_scores(model, "fault", "by kind", name))) == [0, 1, 2, 3, 4]
    assert len(dict(scores.planted_scores(model, "fault", "all kinds", name))) == 9


def test_slow_layers_start_alike_and_move_a_hundredth() -> None:
    recipe = train.Recipe(hidden=64, layers=2, steps=3, length=16, batch=2, scored=2)
    slow = train.slow_layers(recipe, 1)
    assert [name.split(".", 3)[3] for name in slow] == list(train.KINDS)
    start, _ = train.train(train.Recipe(**{**vars(recipe), "steps": 0}), 1, [], train.sums)
    fast, _ = train.train(recipe, 1, [], train.sums)
    mixed, loss = train.train(recipe, 1, slow, train.sums)
    assert 0 < loss < 7
    for name, before in start.state_dict().items():
        if not name.endswith("_proj.weight"):
            continue
        one, two = (m.state_dict()[name] - before for m in (fast, mixed))
        expected = 0.01 if name.removesuffix(".weight") in slow else 1
        assert float(two.norm() / one.norm()) == pytest.approx(expected, rel=0.3)


def test_weights_trained_with_other_settings_are_refused(tmp_path: Path) -> None:
    recipe = train.Recipe(hidden=64, layers=1, steps=1, length=16, batch=2, scored=2)
    path, loss = train.saved(tmp_path, recipe, 0, [], train.sums)
    assert train.saved(tmp_path, recipe, 0, [], train.sums) == (path, loss)
    assert {layer.kind for layer in chosen_layers(open_source(path))} >= {"q", "down"}
    other = train.Recipe(**{**vars(recipe), "steps": 2})
    with pytest.raises(ValueError, match="trained with other settings; remove it or use --fresh"):
        train.saved(tmp_path, other, 0, [], train.sums)


def test_subjects_have_their_windows_and_planted_blocks() -> None:
    shapes = {
        "layers.0.fc1": (256, 512),
        "layers.1.fc1": (200, 128),
        "layers.2.fc1": (300, 300),
        "head": (64, 999),
    }
    source = open_source({f"{name}.weight": np.ones(shape) for name, shape in shapes.items()})
    one = Subject("x", tuple(source.layers), faults.glorot, every=2)
    assert one.window == 64
    assert [layer.name for layer in one.planted] == ["layers.0.fc1", "layers.2.fc1", "head"]
    big = Subject("x", tuple(source.layers[:3]), faults.glorot)
    assert big.window == 128
    assert [big.cut_window(layer, 2) for layer in big.layers] == [128, 64, 128]
    assert [big.cut_window(layer, 4) for layer in big.layers] == [64, None, 75]
    assert big.other_windows((2, 4)) == (64, 75)


def test_models_that_are_not_installed_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Model("Absent", "no-such==1", "no/such.pth")
    monkeypatch.setattr(models, "CATALOGUE", (absent,))
    assert models.installed([tmp_path], 3) == ([], ["Absent (pip package no-such==1)"])


def test_every_model_has_an_initialisation_and_the_readme_its_package() -> None:
    text = (Path(models.__file__).parent / "README.md").read_text()
    assert {model.name for model in models.CATALOGUE} == set(models.INITIAL)
    assert all(model.package in text for model in models.CATALOGUE)
