"""analyze: rows, statuses, the folder of a run, and what is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

import spectail as st
from spectail.core.goodness import judge_tail, verdict
from spectail.measuring.journal import JOURNAL_FILE
from spectail.models.source import Layer
from spectail.results.records import COLUMNS
from tests.conftest import weights


def _table(analysis: st.Analysis) -> pd.DataFrame:
    return analysis.table.drop(columns="seconds")


def test_every_matrix_has_a_row_and_alphas_equal_those_of_tail_fit(checkpoint: Path) -> None:
    analysis = st.analyze(checkpoint)
    table = analysis.table.set_index("name")
    assert tuple(analysis.table.columns) == COLUMNS
    assert analysis.run.window == 64, "the smallest short side of at least 64"
    assert analysis.run.n_vectors == 1
    assert table.loc["model.layers.0.mlp.gate", "status"] == "skipped"
    assert "too small" in str(table.loc["model.layers.0.mlp.gate", "reason"])
    for name in table.index[table["status"] == "ok"]:
        fit = st.tail_fit(weights()[name + ".weight"], window=64)
        # the engine gives each small layer one thread: the last bits of a Gram matrix may differ
        assert table.loc[name, ["alpha", "alpha_se"]].tolist() == pytest.approx(
            [fit.alpha, fit.alpha_se], rel=1e-9
        )
        assert table.loc[name, "n_windows"] == fit.n_windows


def test_norms_describe_the_whole_matrix(checkpoint: Path) -> None:
    row = st.analyze(checkpoint, include=["*.0.mlp.up_proj"], full_spectrum=True).table.iloc[0]
    squared = (
        np.linalg.svd(
            weights()["model.layers.0.mlp.up_proj.weight"].numpy().astype(float), compute_uv=False
        )
        ** 2
    )
    shares = squared / squared.sum()
    expected = {
        "lambda_max": squared[0],
        "frobenius_norm_sq": squared.sum(),
        "stable_rank": squared.sum() / squared[0],
        "log_norm": math.log10(squared.sum()),
        "alpha_weighted": row["alpha"] * math.log10(squared[0]),
        "entropy": -(shares * np.log(shares)).sum() / math.log(96),
        "weight_var": weights()["model.layers.0.mlp.up_proj.weight"]
        .double()
        .var(correction=0)
        .item(),
        "alpha_full": 1 + 48 / np.log(squared[:48] / squared[47]).sum(),
    }
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (torch.eye(64), "all eigenvalues of the tail are equal: no exponent describes them"),
        (
            torch.ones(64, 1) * torch.arange(96.0),
            "too small: 1 eigenvalues in the tail, a fit needs at least",
        ),
    ],
    ids=["equal", "rank 1"],
)
def test_a_whole_matrix_without_exponent_has_no_alpha(
    weight: Tensor, reason: str, tmp_path: Path
) -> None:
    found = st.analyze({"a.weight": weight}, full_spectrum=True, out=tmp_path)
    (record,) = found.layers
    assert math.isnan(record.alpha_full)
    assert f"the whole matrix has no alpha: {reason}" in record.reason
    # An infinite number would be another after reading the run again.
    pd.testing.assert_frame_equal(st.Analysis.load(tmp_path).table, found.table)


def test_live_module_and_file_give_the_same_table(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(128, 96)
    )
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    live, stored = st.analyze(model), st.analyze(tmp_path / "m.safetensors")
    pd.testing.assert_frame_equal(_table(live), _table(stored))


BROKEN: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "nan": (
        lambda w: w.index_put((torch.tensor([3]), torch.tensor([5])), torch.tensor(float("nan"))),
        "1 of 9216",
    ),
    "inf": (
        lambda w: w.index_put((torch.tensor([3]), torch.tensor([5])), torch.tensor(float("inf"))),
        "1 of 9216",
    ),
    "zero": (torch.zeros_like, "all weights are zero"),
    "identity": (lambda w: torch.eye(96), "equal"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_layer_keeps_its_row_and_the_run_goes_on(tmp_path: Path, case: str) -> None:
    state = weights()
    change, words = BROKEN[case]
    state["model.layers.1.self_attn.q_proj.weight"] = change(
        state["model.layers.1.self_attn.q_proj.weight"]
    )
    save_file(state, tmp_path / "m.safetensors")
    table = st.analyze(tmp_path / "m.safetensors").table.set_index("name")
    row = table.loc["model.layers.1.self_attn.q_proj"]
    assert row["status"] == "failed"
    assert words in row["reason"]
    assert np.isnan(row["alpha"])
    assert (table["status"] == "ok").sum() == 9


def test_layers_below_64_are_measured_apart(tmp_path: Path) -> None:
    save_file(
        {"small.weight": torch.randn(40, 80), "large.weight": torch.randn(100, 80)},
        tmp_path / "m.safetensors",
    )
    table = st.analyze(tmp_path / "m.safetensors").table.set_index("name")
    assert table.loc["small", "window_rows"] == 40
    assert not table.loc["small", "comparable"]
    assert "not comparable" in str(table.loc["small", "reason"])
    assert table.loc["large", "window_rows"] == 80
    assert table.loc["large", "comparable"]


def test_a_layer_that_a_given_window_does_not_fit_is_skipped_with_the_reason(
    checkpoint: Path,
) -> None:
    table = st.analyze(checkpoint, spec=st.Spec(window=80)).table.set_index("name")
    row = table.loc["model.layers.0.self_attn.k_proj"]
    assert row["status"] == "skipped"
    assert "80 x 80 does not fit into a matrix of 64 x 96" in row["reason"]


def test_save_and_load_keep_every_value(checkpoint: Path, tmp_path: Path) -> None:
    analysis = st.analyze(checkpoint, full_spectrum=True, out=tmp_path / "run")
    loaded = st.Analysis.load(tmp_path / "run")
    assert loaded.run == analysis.run
    pd.testing.assert_frame_equal(loaded.table, analysis.table)
    assert [layer.spectrum for layer in loaded.layers] == [
        layer.spectrum for layer in analysis.layers
    ]
    # Files hold the number of a block as a whole number, the table as a float with NaN.
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "run" / "layers.parquet"),
        analysis.table.astype({"block": "Int64"}),
    )
    csv = pd.read_csv(tmp_path / "run" / "layers.csv")
    assert csv["alpha"].to_numpy() == pytest.approx(
        analysis.table["alpha"].to_numpy(), nan_ok=True, rel=1e-12
    )
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "analysis.json",
        "layers.csv",
        "layers.parquet",
        "report.html",
    ]


def test_the_ks_cutoff_says_whether_the_tail_is_a_power_law(
    checkpoint: Path, tmp_path: Path
) -> None:
    analysis = st.analyze(checkpoint, spec=st.Spec(cutoff="ks"), out=tmp_path / "run")
    judged = 0
    for layer in analysis.layers:
        if layer.status != "ok":
            assert (layer.tail_verdict, math.isnan(layer.ks_p)) == ("", True)
            continue
        fit = st.tail_fit(weights()[layer.name + ".weight"], st.Spec(cutoff="ks"), window=64)
        found = judge_tail(fit.eigenvalues[-fit.n_tail :])
        assert layer.tail_verdict == verdict(found)
        numbers = [layer.ks_p, layer.lognormal_ratio, layer.exponential_ratio]
        expected = [found.ks_p, found.lognormal_ratio, found.exponential_ratio]
        assert numbers == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True)
        judged += math.isfinite(layer.ks_p)
    assert judged, "no tail of the toy model was large enough"
    pd.testing.assert_frame_equal(st.Analysis.load(tmp_path / "run").table, analysis.table)


def test_other_cutoffs_claim_no_power_law(checkpoint: Path) -> None:
    table = st.analyze(checkpoint, include=["*q_proj"]).table
    assert set(table["tail_verdict"]) == {
        "not applicable: this cutoff measures the shape of the bulk"
    }
    assert table[["ks_p", "lognormal_ratio", "exponential_ratio"]].isna().all(axis=None)


def test_an_average_over_divisions_has_no_tail_of_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 128, 3))
    spec = st.Spec(window="fit", aspect_ratio=1.0, cutoff="ks", legacy=True)
    [row] = st.analyze(model, spec=spec).layers
    assert row.status == "ok"
    assert row.tail_verdict == "not applicable: alpha is an average over several tails"
    assert math.isnan(row.ks_p)


def test_null_z_is_the_distance_from_the_null_in_combined_errors(checkpoint: Path) -> None:
    table = st.analyze(checkpoint).table
    error = np.hypot(table["alpha_se"], table["alpha_null_sd"])
    expected: NDArray[np.float64] = ((table["alpha"] - table["alpha_null"]) / error).to_numpy()
    assert table["null_z"].to_numpy() == pytest.approx(expected, nan_ok=True, rel=1e-12)
    assert (table["null_z"].isna() == table["alpha_se"].isna()).all()


def test_an_analysis_without_the_newer_columns_still_loads(
    checkpoint: Path, tmp_path: Path
) -> None:
    analysis = st.analyze(checkpoint, out=tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "analysis.json").read_text())
    for layer in stored["layers"]:
        for name in ("null_z", "ks_p", "lognormal_ratio", "exponential_ratio"):
            del layer[name]
    (tmp_path / "run" / "analysis.json").write_text(json.dumps(stored))
    loaded = st.Analysis.load(tmp_path / "run").table
    assert loaded["null_z"].isna().all()
    pd.testing.assert_series_equal(loaded["alpha"], analysis.table["alpha"])


def _stop_after(layers: int) -> Callable[..., Any]:
    seen = []

    def progress(layer: Layer | None, done: int, total: int) -> None:
        seen.append(layer)
        if len(seen) > layers:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("stop", [0, 1, 5, 12])
@pytest.mark.parametrize("torn", [b"", b'{"name": "model.layers.2.mlp.up_p'])
def test_a_stopped_run_goes_on_and_gives_the_same_table(
    checkpoint: Path, tmp_path: Path, stop: int, torn: bytes
) -> None:
    whole = st.analyze(checkpoint)
    with pytest.raises(KeyboardInterrupt):
        st.analyze(checkpoint, out=tmp_path / "run", progress=_stop_after(stop))
    kept = (tmp_path / "run" / JOURNAL_FILE).read_text().count("\n") - 1
    assert stop - 1 - torch.get_num_threads() <= kept <= stop, "at most the layers in hand are lost"
    with (tmp_path / "run" / JOURNAL_FILE).open("ab") as journal:
        journal.write(torn)
    measured = []
    resumed = st.analyze(
        checkpoint,
        out=tmp_path / "run",
        progress=lambda layer, done, total: measured.append((layer, done, total)),
    )
    pd.testing.assert_frame_equal(_table(resumed), _table(whole))
    assert len(measured) == 13 - kept + 1
    assert measured[-1][1] == measured[-1][2]


def test_a_run_killed_while_its_files_are_written_leaves_no_pieces(
    checkpoint: Path, tmp_path: Path
) -> None:
    st.analyze(checkpoint, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        st.analyze(checkpoint, out=tmp_path / "run", progress=_stop_after(12))
    left = tmp_path / "run" / ".spectail-a1b2c3d4.part"
    left.mkdir()
    (left / "lock").touch()
    (left / "layers.csv").write_text("half a ta")
    st.analyze(checkpoint, out=tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        p.name for p in (tmp_path / "whole").iterdir()
    }


def test_a_finished_run_is_not_measured_again(checkpoint: Path, tmp_path: Path) -> None:
    first = st.analyze(checkpoint, out=tmp_path / "run")
    again = st.analyze(checkpoint, out=tmp_path / "run", progress=_stop_after(1))
    pd.testing.assert_frame_equal(first.table, again.table)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spec": st.Spec(cutoff="top:0.1")}, "other settings (spec)"),
        ({"include": ["*q_proj"]}, "include"),
        ({"full_spectrum": True}, "full_spectrum"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_run_in_the_folder_is_refused(
    checkpoint: Path, tmp_path: Path, changes: dict[str, Any], words: str, finished: bool
) -> None:
    if finished:
        st.analyze(checkpoint, out=tmp_path / "run")
    else:
        with pytest.raises(KeyboardInterrupt):
            st.analyze(checkpoint, out=tmp_path / "run", progress=_stop_after(4))
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(st.RunError) as error:
        st.analyze(checkpoint, out=tmp_path / "run", **changes)
    assert words in str(error.value)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


def test_another_model_in_the_folder_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    st.analyze(checkpoint, out=tmp_path / "run")
    save_file(weights(seed=1), tmp_path / "other.safetensors")
    with pytest.raises(st.RunError, match=r"another model: toy.*other"):
        st.analyze(tmp_path / "other.safetensors", out=tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"include": ["*nothing*"]}, "nothing"),
        (
            {"spec": {"window": 500}},
            "a window of 500 is larger than every layer; the largest that fits any is 96",
        ),
        ({"spec": {"aspect_ratio": 0}}, "aspect ratio must be a positive finite number, not 0"),
        ({"spec": {"aspect_ratio": -1.0}}, "not -1.0"),
        ({"spec": {"aspect_ratio": math.nan}}, "not nan"),
        ({"spec": {"placement": "grid:0"}}, "grid:K"),
        ({"spec": {"placement": "tiles"}}, "placement must be tile, grid:K, step:S or random:N"),
        ({"spec": {"cutoff": "top:2"}}, "top:F"),
        ({"spec": {"window": "huge"}}, "window must be"),
        ({"device": "abacus"}, "device must be"),
    ],
)
def test_settings_that_make_no_sense_leave_nothing_behind(
    checkpoint: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    def measure() -> None:
        spec = st.Spec(**options.pop("spec", {}))
        st.analyze(checkpoint, out=tmp_path / "run", spec=spec, **options)

    with pytest.raises(st.SpectailError) as error:
        measure()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", list(st.presets.BY_NAME))
def test_presets_measure_and_survive_json(checkpoint: Path, name: str) -> None:
    spec = st.presets.BY_NAME[name]
    assert st.Spec(**json.loads(json.dumps(spec.to_dict()))) == spec
    if name == "alphaq":
        with pytest.raises(st.SpecError, match="a window of 128 is larger than every layer"):
            st.analyze(checkpoint, spec=spec)
        return
    table = st.analyze(checkpoint, spec=spec, include=["*q_proj"]).table
    assert (table["status"] == "ok").all()
    assert (table["alpha"] > 1).all()


def test_what_the_command_line_can_choose_python_can_too(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(96, 128), "b.weight": torch.randn(128, 96)}
    st.analyze(state, out=tmp_path)
    with pytest.raises(st.RunError):
        st.analyze(state, out=tmp_path, spec=st.presets.FULL)
    again = st.analyze(state, out=tmp_path, spec=st.presets.FULL, fresh=True, engine="local")
    assert again.run.spec == st.presets.FULL
    with pytest.raises(st.SpecError, match=r"^engine must be one of local, ray, not 'dask'$"):
        st.analyze(state, engine="dask")
