"""Pruning touches weight matrices only: tables, tokens, scales and
state-space parameters keep every value."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import spectail as st
from spectail.models.live.walk import module_source

transformers = pytest.importorskip("transformers")


def mamba() -> Any:
    config = transformers.MambaConfig(
        vocab_size=40, hidden_size=32, state_size=16, num_hidden_layers=2
    )
    return transformers.MambaForCausalLM(config)


def rwkv() -> Any:
    config = transformers.RwkvConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32
    )
    return transformers.RwkvForCausalLM(config)


def swin() -> Any:
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2]
    )
    return transformers.SwinForImageClassification(config)


def beit() -> Any:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.BeitConfig(
        image_size=16, patch_size=4, use_relative_position_bias=True, use_mask_token=True, **sizes
    )
    return transformers.BeitForImageClassification(config)


def convnext() -> Any:
    config = transformers.ConvNextV2Config(
        image_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_stages=2
    )
    return transformers.ConvNextV2ForImageClassification(config)


MODELS = {"mamba": mamba, "rwkv": rwkv, "swin": swin, "beit": beit, "convnext": convnext}


@pytest.mark.parametrize("case", MODELS)
def test_what_is_no_weight_matrix_keeps_its_values(case: str) -> None:
    torch.manual_seed(0)
    model = MODELS[case]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    layers = module_source(model).layers
    assert (
        any(layer.no_weight and layer.block is not None for layer in layers) or case == "convnext"
    )
    report = st.prune(model, 0.5, method="magnitude")
    pruned = {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, before[name])
    }
    linear = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    owned = {
        f"{path}.{name}"
        for path, owner in model.named_modules()
        for name, _ in owner.named_parameters(recurse=False)
        if isinstance(owner, linear) and name == "weight"
    }
    assert pruned
    assert pruned <= owned
    reasons = {layer.name: layer.reason for layer in report.left_out}
    assert all(
        reasons[layer.name].startswith("no weight matrix: ") for layer in layers if layer.no_weight
    )
