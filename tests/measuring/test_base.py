"""``analyze`` with a base: what is measured is the change, and the results say so."""

import math
from pathlib import Path

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
