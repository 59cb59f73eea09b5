"""The difference of two models: paired by name, streamed from both, nothing lost."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from spectail.errors import SourceError, SpecError
from spectail.models.difference import UNCHANGED, Change, difference
from spectail.models.open import open_source


def weights(seed: int, rows: int = 32) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {
        f"model.layers.{i}.{name}.weight": torch.randn(rows, 48, generator=drawn)
        for i in range(2)
        for name in ("self_attn.q_proj", "mlp.up_proj")
    }


def test_layers_are_paired_by_name_and_subtracted(tmp_path: Path) -> None:
    base, tuned = weights(0), weights(1)
    save_file(base, tmp_path / "base.safetensors")
    save_file(dict(reversed(tuned.items())), tmp_path / "tuned.safetensors")
    opened = difference(
        open_source(tmp_path / "tuned.safetensors"), open_source(tmp_path / "base.safetensors")
    )
    assert {layer.name for layer in opened.layers} == {n.removesuffix(".weight") for n in base}
    for layer in opened.layers:
        name = f"{layer.name}.weight"
        assert isinstance(layer, Change)
        change, (before,) = layer.read_change()
        assert torch.equal(change[0], tuned[name] - base[name])
        assert torch.equal(before[0], base[name])
    assert len(opened.files) == 2


def test_half_precision_is_subtracted_in_single(tmp_path: Path) -> None:
    base = {"a.weight": torch.full((16, 16), 256.0, dtype=torch.bfloat16)}
    tuned = {"a.weight": torch.full((16, 16), 0.5, dtype=torch.float16)}
    (layer,) = difference(open_source(tuned), open_source(base)).layers
    assert layer.read().unique().tolist() == [-255.5]


def test_what_was_not_trained_says_so() -> None:
    tuned = weights(0)
    tuned["model.layers.1.mlp.up_proj.weight"] = weights(1)["model.layers.1.mlp.up_proj.weight"]
    opened = difference(open_source(tuned), open_source(weights(0)))
    for layer in opened.layers:
        if layer.name == "model.layers.1.mlp.up_proj":
            assert layer.read().any()
        else:
            with pytest.raises(SpecError, match=UNCHANGED):
                layer.read()


def test_a_layer_without_counterpart_is_skipped_with_the_reason() -> None:
    tuned, base = weights(1), weights(0)
    tuned["value_head.weight"] = torch.randn(16, 48)
    tuned["lm_head.weight"] = torch.randn(101, 48)
    base["lm_head.weight"] = torch.randn(100, 48)
    base["pooler.weight"] = torch.randn(16, 48)
    opened = difference(open_source(tuned), open_source(base))
    reasons = {layer.name: layer.no_weight for layer in opened.layers if layer.no_weight}
    assert reasons == {
        "value_head": "the base has no layer of this name",
        "lm_head": "101 x 48 here and 100 x 48 in the base: their difference is not defined",
    }
    assert any("pooler" in note for note in opened.notes)


def test_models_without_a_layer_in_common_are_an_error() -> None:
    with pytest.raises(SourceError, match="no layer of the same name and shape"):
        difference(open_source(weights(0)), open_source({"other.weight": torch.randn(16, 16)}))


def test_the_fingerprint_tells_both_models() -> None:
    a, b, c = (open_source(weights(seed)) for seed in range(3))
    prints = {difference(x, y).fingerprint for x, y in ((a, b), (b, a), (a, c))}
    assert len(prints) == 3
