"""The stability experiment on a toy model: it runs, goes on after a stop, and
measures what spectail measures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata

import spectail as st
from experiments.stability import catalogue
from experiments.stability.__main__ import _columns, main
from experiments.stability.catalogue import Model, chosen_layers, find
from experiments.stability.measure import (
    CUTOFFS,
    HALVES,
    SEARCHING,
    Settings,
    _chessboard,
    measure_layer,
)
from experiments.stability.summary import MIN_LAYERS, rank_correlation, worst_placement
from spectail.core.windows import Grid, Tile, Window
from spectail.models.open import open_source


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("stability")
    assert main(["--quick", "--out", str(folder)]) == 0
    return folder / "quick"


def test_a_quick_run_writes_results_tables_and_picture(quick: Any) -> None:
    results = json.loads((quick / "results.json").read_text())
    assert set(results) == {"environment", "settings", "not installed", "models", "summary"}
    toy = results["models"]["toy"]
    assert toy["common"] == 64
    assert list(toy["sides"]) == ["16", "24", "32", "64"]
    assert len(toy["sides"]["32"]["alpha"]["tile"]["median"]) == len(toy["layers"]) == 10
    at_half = results["summary"]["rules"]["toy"]["half"]["median"]
    worst = worst_placement(at_half)
    assert worst is not None
    assert worst > 0.5
    assert at_half["signal"] > 1
    assert "| median |" in (quick / "tables.md").read_text()
    assert (quick / "stability.png").read_bytes().startswith(b"\x89PNG")


def test_a_stopped_run_goes_on_to_the_same_results(
    quick: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--out", str(tmp_path)]
    assert main([*arguments, "--seconds", "0.01"]) == 3
    assert "run again to go on" in capsys.readouterr().out
    assert main(arguments) == 0
    one, two = (
        json.loads((folder / "results.json").read_text()) for folder in (quick, tmp_path / "quick")
    )
    for side in one["models"]["toy"]["sides"]:
        for what in ("alpha", "se", "windows"):
            assert (
                one["models"]["toy"]["sides"][side][what]
                == two["models"]["toy"]["sides"][side][what]
            )


@pytest.mark.parametrize("shape", [(100, 130), (64, 256), (3, 64, 96)])
def test_alphas_and_errors_are_those_of_tail_fit(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(1).standard_t(3, shape)
    weight = weight if weight.ndim == 3 else weight[None]
    layer = open_source(
        {"a.weight": np.moveaxis(weight, 0, -1) if len(shape) == 3 else weight[0]}
    ).layers[0]
    found = measure_layer(layer, 64, Settings(sides=(32,)))["sides"]
    for side in (32, 64):
        for name, cutoff in CUTOFFS.items():
            spec = st.Spec(window=side, placement="grid:5", cutoff=cutoff)
            fit = st.tail_fit(weight, spec)
            assert found[str(side)]["alpha"]["grid:5"][name] == pytest.approx(fit.alpha, rel=1e-5)
            if side == 64 or name not in SEARCHING:
                assert found[str(side)]["se"][name] == pytest.approx(fit.alpha_se, rel=1e-3)
        seeded = st.tail_fit(weight, st.Spec(window=side, placement="random:25", seed=1))
        assert found[str(side)]["alpha"]["random:25 seed 1"]["median"] == pytest.approx(
            seeded.alpha, rel=1e-5
        )


def test_a_side_that_does_not_fit_and_a_placement_of_the_same_windows_are_left_out() -> None:
    layer = open_source({"a.weight": np.random.default_rng(0).standard_normal((64, 64))}).layers[0]
    found = measure_layer(layer, 64, Settings(sides=(32, 96)))["sides"]
    assert list(found) == ["32", "64"]
    assert list(found["64"]["alpha"]) == ["tile"]
    assert {"tile", *HALVES} <= set(found["32"]["alpha"])


def test_the_two_colours_share_no_weight_and_hold_every_window() -> None:
    positions = Tile().positions(96, 160, Window(32, 32))
    colours = _chessboard(positions)
    assert sorted(colours[HALVES[0]] + colours[HALVES[1]]) == list(range(15))
    seen = np.zeros((2, 96, 160), dtype=int)
    for i, half in enumerate(HALVES):
        for number in colours[half]:
            top, left = positions[number]
            seen[i, top : top + 32, left : left + 32] += 1
    assert (seen.sum(axis=0) == 1).all()
    assert len(colours[HALVES[0]]) - len(colours[HALVES[1]]) == 1
    assert _chessboard(Grid(1).positions(96, 160, Window(32, 32))) == {}


def test_rank_correlation_is_the_correlation_of_the_ranks_where_both_are_known() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(20).tolist(), rng.random(20).tolist()
    expected = np.corrcoef(rankdata(a[1:-1]), rankdata(b[1:-1]))[0, 1]
    assert rank_correlation([None, *a[1:]], [*b[:-1], None]) == pytest.approx(expected, abs=1e-4)
    assert rank_correlation(a[: MIN_LAYERS - 1], b[: MIN_LAYERS - 1]) is None
    assert rank_correlation([1.0] * 20, b) is None


def test_columns_hold_none_where_a_layer_has_no_number() -> None:
    assert _columns([{"a": {"x": 1}}, {}, {"a": {"x": 2, "y": 3}}]) == {
        "a": {"x": [1, None, 2], "y": [None, None, 3]}
    }


def test_every_k_th_block_and_no_embedding_or_small_layer() -> None:
    state = {f"layers.{i}.fc1.weight": np.ones((64, 64)) for i in range(6)}
    state |= {
        "embed_tokens.weight": np.ones((99, 64)),
        "head.weight": np.ones((99, 64)),
        "a.weight": np.ones((63, 99)),
    }
    names = [layer.name for layer in chosen_layers(open_source(state), 3)]
    assert names == ["layers.0.fc1", "layers.3.fc1", "head"]


def test_a_model_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = Model("Absent", "no-such-package==1", "no_such_package/weights.pth")
    assert find(absent, [tmp_path]) is None
    present = replace(absent, path="weights.pth")
    (tmp_path / "weights.pth").touch()
    assert find(present, [tmp_path]) == tmp_path / "weights.pth"
    monkeypatch.setattr("experiments.stability.__main__.CATALOGUE", (absent,))
    assert main(["--out", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert "not installed, left out: Absent (pip package no-such-package==1)" in shown.out
    assert "none of the models is installed; see experiments/stability/README.md" in shown.err


def test_the_readme_names_every_package() -> None:
    text = (Path(catalogue.__file__).parent / "README.md").read_text()
    assert all(model.package in text for model in catalogue.CATALOGUE)
