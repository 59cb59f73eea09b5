"""An allocation made from a file meets the live model, whatever either of them calls the layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import spectail as st
from spectail.core.spec import Spec
from spectail.errors import PruneError
from spectail.models.open import open_source
from spectail.pruning.weights_to_prune import choose_targets

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def bert() -> Any:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=40, **SIZES)
    )


def vit() -> Any:
    config = transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)
    return transformers.ViTForImageClassification(config)


def mixtral() -> Any:
    config = transformers.MixtralConfig(
        vocab_size=40, num_key_value_heads=1, num_local_experts=2, **SIZES
    )
    return transformers.MixtralForCausalLM(config)


MODELS = {"bert": bert, "vit": vit, "mixtral": mixtral}


def allocation_from(folder: Path) -> st.Allocation:
    """Different ratios for the layers of a file, so that a wrong pair shows."""
    spec = Spec(window=16)
    return st.allocate(
        st.analyze(folder, spec=spec), target="sparsity", budget=0.5, level="layer", missing="mean"
    )


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("base", [False, True])
def test_prune_the_live_model_by_its_file(case: str, base: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = MODELS[case]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1 + torch.rand(()).item())
    (model.base_model if base else model).save_pretrained(tmp_path)
    values = {layer.name: layer for layer in open_source(tmp_path).layers if not layer.no_weight}
    allocation = allocation_from(tmp_path)
    targets, _ = choose_targets(model, allocation)
    found = {target.weight.name: target for target in targets}
    assert len(found) == len(allocation)
    unpaired = dict(allocation)
    for target in targets:
        same = [
            name for name in unpaired if torch.equal(values[name].read()[0], target.weight.read())
        ]
        assert len(same) == 1, target.weight.name
        assert unpaired.pop(same[0]) == target.ratio


def llama() -> Any:
    config = transformers.LlamaConfig(vocab_size=40, num_key_value_heads=1, **SIZES)
    return transformers.LlamaForCausalLM(config)


def test_a_multi_token_prediction_block_lies_in_the_file_only() -> None:
    model = llama()
    state = dict(model.state_dict())
    state |= {
        "model.layers.2.eh_proj.weight": torch.randn(32, 64),
        "model.layers.2.mlp.up_proj.weight": torch.randn(48, 32),
        "model.layers.2.shared_head.head.weight": torch.randn(40, 32),
        "mtp.fc.weight": torch.randn(32, 64),
    }
    analysis = st.analyze(state, spec=Spec(window=16))
    kinds = {layer.name: layer.kind for layer in analysis.layers}
    assert kinds["model.layers.2.shared_head.head"] == "head"
    allocation = st.allocate(analysis, target="sparsity", budget=0.5, level="layer", missing="mean")
    assert "model.layers.2.shared_head.head" not in allocation
    targets, left_out = choose_targets(model, allocation)
    assert {target.weight.name.split(".")[2] for target in targets} == {"0", "1"}
    reasons = {layer.name: layer.reason for layer in left_out}
    assert (
        reasons["model.layers.2.eh_proj"]
        == "multi-token prediction: it lies in the file and not in the model"
    )


def test_what_could_be_several_layers_is_refused_with_all_of_them() -> None:
    model = torch.nn.Module()
    for tower in ("text", "image"):
        inner = torch.nn.Module()
        inner.layers = torch.nn.ModuleList([torch.nn.ModuleDict({"fc1": torch.nn.Linear(8, 8)})])
        model.add_module(tower, inner)
    with pytest.raises(
        PruneError,
        match=r"layers\.0\.fc1 could be any of image\.layers\.0\.fc1, text\.layers\.0\.fc1",
    ):
        choose_targets(model, {"layers.0.fc1": 0.5})
