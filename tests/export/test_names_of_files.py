"""An allocation made from a file in the words of tools that know the live model's modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from spectail.errors import ExportError
from spectail.export.llm_compressor import pruning_recipe, quantization_recipe
from spectail.export.torch_pruning import pruning_ratio_dict
from spectail.export.torchao import fqn_to_config
from spectail.models.live.language import module_names
from spectail.models.live.saved_names import saved_modules
from tests.export.conftest import allocation

transformers = pytest.importorskip("transformers")
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    text = transformers.LlamaConfig(vocab_size=32, **SIZES)
    vision = transformers.CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=16, **SIZES)
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=31)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    return tmp_path


FILE = [
    f"language_model.model.layers.{i}.mlp.{part}_proj" for i in (0, 1) for part in ("down", "up")
]
LIVE = [
    f"model.language_model.layers.{i}.mlp.{part}_proj" for i in (0, 1) for part in ("up", "down")
]
RATIOS = dict(zip(FILE, (0.1, 0.2, 0.3, 0.4), strict=True))


def test_recipes_name_the_modules_of_the_live_model(llava: Path) -> None:
    modules = module_names(llava)
    (stage,) = yaml.safe_load(pruning_recipe(allocation(RATIOS), modules)).values()
    modifier = stage["pruning_modifiers"]["WandaPruningModifier"]
    assert (modifier["targets"], modifier["sparsity"]) == (LIVE, [0.2, 0.1, 0.4, 0.3])
    bits = dict(zip(FILE, (4, 8, 8, 4), strict=True))
    (stage,) = yaml.safe_load(quantization_recipe(allocation(bits, "bits"), modules)).values()
    groups = stage["quantization_modifiers"]["QuantizationModifier"]["config_groups"]
    assert groups["bits_4"]["targets"] == [LIVE[1], LIVE[2]]


def test_torch_pruning_takes_the_names_of_a_vision_transformers_file() -> None:
    config = transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)
    model = transformers.ViTForImageClassification(config)
    ratios = {
        "vit.encoder.layer.1.intermediate.dense": 0.5,
        "encoder.layer.0.attention.attention.query": 0.25,
    }
    found = pruning_ratio_dict(ratios, model, saved_modules(model))
    assert found == {model.vit.layers[1].mlp.fc1: 0.5, model.vit.layers[0].attention.q_proj: 0.25}


def test_a_name_that_could_be_two_modules_is_refused() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.ModuleDict({"fc": torch.nn.Linear(2, 2)})})
    model["b"] = torch.nn.ModuleDict({"fc": torch.nn.Linear(2, 2)})
    with pytest.raises(ExportError, match=r"fc could be any of the modules a\.fc, b\.fc"):
        pruning_ratio_dict({"fc": 0.5}, model)


def test_torchao_refuses_names_that_are_no_modules() -> None:
    data = {"group_size": 32, "bits": {"layers.0.fc1": 4}}
    with pytest.raises(
        ExportError, match=r"the model has no module layers\.0\.fc1: give the names"
    ):
        fqn_to_config(data, ["layers.1.fc1"])
    torchao = pytest.importorskip("torchao.quantization")
    config = fqn_to_config(data, ["model.layers.0.fc1"])
    assert isinstance(config, torchao.FqnToConfig)
