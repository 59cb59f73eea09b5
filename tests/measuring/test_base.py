"""``analyze`` with a base: what is measured is the change, and the results say so."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import spectail as st
from spectail.cli import run as main
from spectail.errors import SpecError


def model(seed: int, frozen: bool = False) -> dict[str, Tensor]:
    """Two blocks; the second seed adds a change of rank 4 to the weights of the first."""
    drawn = torch.Generator().manual_seed(0)
    weights = {
        f"model.layers.{b}.{name}.weight": torch.randn(96, 96, generator=drawn)
        for b in range(2)
        for name in ("self_attn.q_proj", "mlp.up_proj")
    }
    if seed:
        more = torch.Generator().manual_seed(seed)
        for name in weights:
            if not (frozen and "q_proj" in name):
                weights[name] += 0.1 * torch.randn(96, 96, generator=more)
    return weights


def test_the_change_is_measured_as_a_matrix_of_its_own() -> None:
    base, tuned = model(0), model(1)
    found = st.analyze(tuned, base=base)
    for record in found.layers:
        change = tuned[f"{record.name}.weight"] - base[f"{record.name}.weight"]
        alone = st.analyze({f"{record.name}.weight": change}).layers[0]
        assert record.alpha == alone.alpha
        assert record.lambda_max == alone.lambda_max
        expected = change.norm() / base[f"{record.name}.weight"].norm()
        assert record.relative_change == pytest.approx(float(expected), rel=1e-5)
    assert math.isnan(st.analyze(tuned).layers[0].relative_change)


def test_layers_that_were_not_trained_are_skipped_and_say_so() -> None:
    found = st.analyze(model(1, frozen=True), base=model(0))
    status = {layer.name: (layer.status, layer.reason) for layer in found.layers}
    for name, (what, reason) in status.items():
        assert what == ("skipped" if "q_proj" in name else "ok")
        assert ("nothing was trained" in reason) == (what == "skipped")


def test_the_command_writes_a_page_that_shows_the_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("base", 0), ("tuned", 1)):
        save_file(model(seed), tmp_path / f"{name}.safetensors")
    tuned, base, out = (str(tmp_path / n) for n in ("tuned.safetensors", "base.safetensors", "run"))
    assert main(["analyze", tuned, "--base", base, "--out", out, "--quiet"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Where the weights changed" in page
    assert f"--base {base}" in page
    stored = st.Analysis.load(out)
    assert stored.run.source == "tuned.safetensors minus base.safetensors"
    # Another base is another run.
    save_file(model(2), tmp_path / "base.safetensors")
    assert main(["analyze", tuned, "--base", base, "--out", out, "--quiet"]) == 2
    assert "another model" in capsys.readouterr().err


def test_quantisation_errors_of_a_change_are_refused() -> None:
    with pytest.raises(SpecError, match="leave out --base or --quantization-errors"):
        st.analyze(model(1), base=model(0), quantization_errors=True)


def test_the_relative_change_of_a_large_layer_is_summed_in_double_precision() -> None:
    drawn = torch.Generator().manual_seed(0)
    base = torch.randn(1024, 1024, generator=drawn)
    tuned = base.clone()
    tuned[:64] += 1  # of another size than the base: errors of the two sums would not cancel
    (record,) = st.analyze({"a.weight": tuned}, base={"a.weight": base}).layers
    expected = (tuned - base).double().norm() / base.double().norm()
    assert record.relative_change == pytest.approx(float(expected), rel=1e-9)


def test_an_infinite_change_has_no_relative_size(tmp_path: Path) -> None:
    tuned, base = model(1), model(0)
    for name, value in zip(tuned, (math.inf, math.nan, 1.0, -math.inf), strict=True):
        tuned[name][3, 4] = value
    found = st.analyze(tuned, base=base, out=tmp_path)
    assert [math.isfinite(record.relative_change) for record in found.layers] == [
        False,
        False,
        True,
        False,
    ]
    pd.testing.assert_frame_equal(st.Analysis.load(tmp_path).table, found.table)


QKV, ATTENTION = "model.layers.0.self_attn.qkv_proj", "model.layers.0.self_attn"


def adapter(target: str, rows: int, name: str = "", rank: int = 24) -> dict[str, Tensor]:
    """LoRA's two factors for a weight of ``rows`` x 96."""
    drawn, ending = torch.Generator().manual_seed(rows), f".{name}.weight" if name else ".weight"
    return {
        f"{target}.lora_A{ending}": torch.randn(rank, 96, generator=drawn),
        f"{target}.lora_B{ending}": torch.randn(rows, rank, generator=drawn),
    }


def expected_change(factors: dict[str, Tensor], base: Tensor) -> float:
    """Return the norm of B A over that of the base."""
    a, b = (factor.double() for factor in factors.values())
    return float((b @ a).norm() / base.double().norm())


def test_an_adapter_of_a_fused_weight_is_paired_with_its_parts() -> None:
    factors, weight = adapter(QKV, 288), torch.randn(288, 96)
    base = {f"{QKV}.weight": weight}
    assert len(st.analyze(base).layers) == 3
    (record,) = st.analyze(factors, base=base).layers
    assert record.status == "ok"
    assert record.alpha == st.analyze(factors).layers[0].alpha
    assert record.relative_change == pytest.approx(expected_change(factors, weight), rel=1e-6)
    assert "no relative change" not in record.reason


def test_two_adapters_of_one_weight_are_paired_with_it() -> None:
    target, weight = f"{ATTENTION}.q_proj", torch.randn(96, 96)
    first, second = adapter(target, 96, "first"), adapter(target, 96, "second", rank=32)
    found = st.analyze({**first, **second}, base={f"{target}.weight": weight}).layers
    assert [record.name for record in found] == [f"{target}.lora.first", f"{target}.lora.second"]
    for record, factors in zip(found, (first, second), strict=True):
        assert record.relative_change == pytest.approx(expected_change(factors, weight), rel=1e-6)


@pytest.mark.parametrize(
    ("base_rows", "reason"),
    [
        (None, "no relative change: the base has no layer of this name"),
        (128, "no relative change: 9216 weights here and 12288 in the base"),
    ],
)
def test_an_adapter_is_measured_also_if_the_base_lacks_its_weight(
    base_rows: int | None, reason: str
) -> None:
    known, other = f"{ATTENTION}.q_proj", f"{ATTENTION}.o_proj"
    base = {f"{known}.weight": torch.randn(96, 96)}
    if base_rows:
        base[f"{other}.weight"] = torch.randn(base_rows, 96)
    found = st.analyze({**adapter(known, 96), **adapter(other, 96)}, base=base).layers
    (record,) = (layer for layer in found if layer.name == f"{other}.lora")
    assert record.status == "ok"
    assert reason in record.reason
    assert math.isnan(record.relative_change)


def test_adapters_that_cannot_be_read_say_why() -> None:
    target = f"{ATTENTION}.q_proj"
    factors = {f"{target}.oft_R.weight": torch.randn(12, 28)}
    base = {f"{target}.weight": torch.randn(96, 96)}
    (alone,), (record,) = (st.analyze(factors, base=b).layers for b in (None, base))
    assert alone.status == record.status == "failed"
    assert record.reason == alone.reason != ""
