"""Traps and the ERG condition as columns of a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from spectail.cli import run
from spectail.errors import RunError

TRAPS = ["n_traps", "trap_ratio", "trap_p"]
ERG = ["erg_n", "erg_gap"]


def _model() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = {
        "layers.0.a.weight": torch.randn(128, 192, generator=generator),
        "layers.1.a.weight": torch.randn(128, 192, generator=generator),
        "conv.weight": torch.randn(64, 64, 3, 3, generator=generator),
        "router.weight": torch.randn(4, 192, generator=generator),
        "broken.weight": torch.full((128, 128), math.nan),
    }
    model["layers.1.a.weight"][3, 5] = 60
    model["conv.weight"][2, 2, 0, 0] = 60
    return model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file(_model(), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize(
    "spec",
    [
        st.presets.FARMS,
        st.presets.TEMPBALANCE,
        st.presets.WEIGHTWATCHER,
        st.Spec(window=64, tolerance=0.5),
        st.Spec(window=64, placement="random:3"),
    ],
    ids=["farms", "published", "weightwatcher", "tolerance", "random"],
)
def test_layers_with_a_huge_weight_have_traps(spec: st.Spec) -> None:
    table = st.analyze(_model(), spec=spec, traps=True, erg=True).table.set_index("name")
    ok = table[table["status"] == "ok"]
    assert {"layers.0.a", "layers.1.a", "conv"} <= set(ok.index)
    small = ok[["window_rows", "window_cols"]].min(axis=1) < 8
    assert ok[~small][TRAPS + ERG].notna().all(axis=None)
    assert ok[small]["reason"].str.contains("traps not looked for").all()
    ok = ok[~small]
    assert (ok["erg_gap"] == ok["erg_n"] - ok["n_tail"]).all()
    assert float(ok["trap_p"]["layers.0.a"]) > 0.001
    # A few windows may miss the weight; tiles and whole matrices may not.
    if spec.placement == st.presets.FARMS.placement and spec.tolerance is None:
        assert (ok.loc[["layers.1.a", "conv"], "n_traps"] >= 1).all()
        assert (ok.loc[["layers.1.a", "conv"], "trap_p"] < 1e-6).all()
    assert ((ok["n_traps"] > 0) == (ok["trap_ratio"] > 1)).all()
    assert ((ok["n_traps"] > 0) == (ok["trap_p"] < 0.01)).all()
    assert table.loc["broken", TRAPS + ERG].isna().all()


def test_they_are_measured_only_if_asked_for_and_change_nothing_else() -> None:
    plain = st.analyze(_model())
    both = st.analyze(_model(), traps=True, erg=True)
    assert plain.table[TRAPS + ERG].isna().all(axis=None)
    others = [x for x in plain.table.columns if x not in {*TRAPS, *ERG, "seconds"}]
    assert both.table[others].equals(plain.table[others])
    assert (plain.run.traps, plain.run.erg, both.run.traps, both.run.erg) == (0, 0, 1, 1)


def test_they_are_the_same_again_and_other_with_another_seed() -> None:
    first, again, other = (
        st.analyze(_model(), spec=st.Spec(seed=seed), traps=True).table["trap_ratio"]
        for seed in (0, 0, 1)
    )
    assert first.equals(again)
    assert not first.equals(other)


def test_a_mean_is_named_in_the_reason() -> None:
    weight = torch.randn(128, 128, generator=torch.Generator().manual_seed(4)) + 0.5
    [layer] = st.analyze({"a.weight": weight}, traps=True).layers
    assert layer.n_traps == 1
    assert "the mean of the weights alone is large enough for a trap" in layer.reason


@pytest.mark.parametrize("flag", ["traps", "erg"])
def test_a_finished_run_without_them_is_not_taken_for_one_with_them(
    flag: str, checkpoint: Path, tmp_path: Path
) -> None:
    out, traps, erg = tmp_path / "run", flag == "traps", flag == "erg"
    st.analyze(checkpoint, out=out)
    with pytest.raises(RunError, match=rf"other settings \({flag}\).*--fresh to replace it"):
        st.analyze(checkpoint, out=out, traps=traps, erg=erg)
    st.analyze(checkpoint, out=out, fresh=True, traps=traps, erg=erg)
    loaded = st.Analysis.load(tmp_path / "run")
    assert getattr(loaded.run, flag)
    assert loaded.table[TRAPS if flag == "traps" else ERG].notna().any(axis=None)


def test_the_command_has_both_and_the_page_repeats_them(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["analyze", str(checkpoint), "--out", str(out), "--traps", "--erg", "--quiet"]
    assert run(command) == 1, "one layer is broken"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "--traps --erg" in page
    assert "Trap ratio" in page
