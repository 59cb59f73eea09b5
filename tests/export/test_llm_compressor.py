"""Recipes for llm-compressor: what they say, and, where it is installed, that it does what they
say.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import spectail as st
from spectail.errors import ExportError
from spectail.export.formats import integers_of
from spectail.export.llm_compressor import PRUNERS, QUANTISERS, pruning_recipe, quantization_recipe
from tests.export.conftest import allocation, llama_names, llama_ratios
from tests.export.runs import change, logits, rows, saved, wide_llama
from tests.export.test_formats import chosen, mixed
from tests.language import llama, tokenizer, words

MODULES = [name for name, _ in llama().named_modules()]


@pytest.mark.parametrize("method", PRUNERS)
def test_a_pruning_recipe_has_one_modifier_in_the_order_of_the_modules(method: str) -> None:
    ratios = llama_ratios()
    recipe = yaml.safe_load(pruning_recipe(allocation(ratios), MODULES, method=method))
    assert list(recipe) == ["spectail_stage"]
    assert list(recipe["spectail_stage"]["pruning_modifiers"]) == [PRUNERS[method]]
    modifier = recipe["spectail_stage"]["pruning_modifiers"][PRUNERS[method]]
    assert modifier["mask_structure"] == "0:0"
    assert modifier["targets"] == [name for name in MODULES if name in ratios]
    assert modifier["targets"] != list(ratios)
    assert dict(zip(modifier["targets"], modifier["sparsity"], strict=True)) == ratios


def test_ratios_keep_every_digit() -> None:
    values = {name: ratio + 1e-13 for name, ratio in llama_ratios().items()}
    modifier = yaml.safe_load(pruning_recipe(allocation(values), MODULES))["spectail_stage"][
        "pruning_modifiers"
    ]
    assert set(modifier["WandaPruningModifier"]["sparsity"]) == set(values.values())


def test_a_quantisation_recipe_groups_modules_by_width() -> None:
    bits = {name: (4, 8)[i % 2] for i, name in enumerate(llama_names())}
    recipe = yaml.safe_load(
        quantization_recipe(allocation(bits, "bits"), method="gptq", group_size=32)
    )
    groups = recipe["spectail_stage"]["quantization_modifiers"]["GPTQModifier"]["config_groups"]
    assert list(groups) == ["bits_4", "bits_8"]
    for width, group in zip((4, 8), groups.values(), strict=True):
        assert group["targets"] == [name for name, b in bits.items() if b == width]
        weights = {
            "num_bits": width,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": 32,
        }
        assert group["weights"] == weights


def test_layers_of_16_bits_or_more_are_not_quantised() -> None:
    bits = {name: (4, 16, 32)[i % 3] for i, name in enumerate(llama_names())}
    recipe = yaml.safe_load(quantization_recipe(allocation(bits, "bits"), MODULES))
    [settings] = recipe["spectail_stage"]["quantization_modifiers"].values()
    [group] = settings["config_groups"].values()
    assert set(group["targets"]) == {name for name, width in bits.items() if width == 4}
    with pytest.raises(ExportError, match="every layer has 16 bits or more: nothing is quantised"):
        quantization_recipe(allocation(dict.fromkeys(bits, 16), "bits"))


@pytest.mark.parametrize("recipe", [quantization_recipe, pruning_recipe])
def test_experts_have_to_become_modules_first(recipe: Callable[..., Any]) -> None:
    target, value = ("bits", 4) if recipe is quantization_recipe else ("sparsity", 0.5)
    stored = allocation(dict.fromkeys(["model.layers.0.mlp.experts.3.gate_proj"], value), target)
    fused = ["model.layers.0.mlp", "model.layers.0.mlp.experts", "model.layers.0.mlp.gate"]
    with pytest.raises(
        ExportError,
        match=r"experts\.3\.gate_proj, for its experts are one tensor.*load_quantizable_moe",
    ):
        recipe(stored, fused)
    assert "experts.3.gate_proj" in recipe(
        stored, [*fused, "model.layers.0.mlp.experts.3.gate_proj"]
    )
    live = allocation(
        dict.fromkeys(["model.layers.0.mlp.experts.gate_up_proj[3].gate"], value), target
    )
    with pytest.raises(
        ExportError, match=r"these layers are none \(linearise them first.*load_quantizable_moe"
    ):
        recipe(live, fused)


def test_what_has_no_recipe() -> None:
    sparse, bits = allocation(llama_ratios()), allocation(dict.fromkeys(llama_names(), 4), "bits")
    with pytest.raises(
        ExportError,
        match="a pruning recipe takes an allocation of sparsity, but this one is of bits",
    ):
        pruning_recipe(bits, MODULES)
    with pytest.raises(
        ExportError,
        match="a quantisation recipe takes an allocation of bits, but this one is of spar",
    ):
        quantization_recipe(sparse)
    with pytest.raises(
        ExportError, match="method must be one of wanda, sparsegpt, not 'magnitude'"
    ):
        pruning_recipe(sparse, MODULES, method="magnitude")
    with pytest.raises(ExportError, match="method must be one of rtn, gptq, not 'wanda'"):
        quantization_recipe(bits, method="wanda")
    with pytest.raises(
        ExportError,
        match=r"the model has no module model\.layers\.1\.mlp\.down_proj: give the names",
    ):
        pruning_recipe(sparse, [name for name in MODULES if name != "model.layers.1.mlp.down_proj"])
    with pytest.raises(
        ExportError,
        match=r"the model has no module model\.layers\.1\.mlp\.down_proj: give the names",
    ):
        quantization_recipe(
            bits, [name for name in MODULES if name != "model.layers.1.mlp.down_proj"]
        )
    for size in (0, 1.5, True):
        with pytest.raises(
            ExportError, match=f"group_size must be a whole number of weights, not {size}"
        ):
            quantization_recipe(bits, group_size=size)  # type: ignore[arg-type]


def _oneshot(tmp_path: Path, recipe: Any) -> Any:
    """Run a recipe on the toy Llama, 16 sequences of 32 tokens."""
    llmcompressor = pytest.importorskip("llmcompressor")
    datasets = pytest.importorskip("datasets")
    (tmp_path / "recipe.yaml").write_text(recipe)
    ids = [tokenizer()(words(32, seed))["input_ids"] for seed in range(16)]
    data = datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 32 for _ in ids]})
    llama().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    model, saved_tokenizer = st.open_language_model(tmp_path / "model")
    llmcompressor.oneshot(
        model=model, tokenizer=saved_tokenizer, dataset=data, recipe=str(tmp_path / "recipe.yaml"),
        max_seq_length=32, num_calibration_samples=16,
    )  # fmt: skip
    return model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", PRUNERS)
def test_llm_compressor_gives_the_ratios_back(tmp_path: Path, method: str) -> None:
    ratios = llama_ratios()
    model = _oneshot(tmp_path, pruning_recipe(allocation(ratios), MODULES, method=method))
    for name, ratio in ratios.items():
        weight = model.get_submodule(name).weight
        zeros = float((weight == 0).float().mean())
        assert zeros == pytest.approx(ratio, abs=0.005), name
    assert (model.lm_head.weight != 0).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", QUANTISERS)
def test_llm_compressor_gives_the_widths_back(tmp_path: Path, method: str) -> None:
    bits = {name: (2, 3, 4, 8)[i % 4] for i, name in enumerate(llama_names())}
    recipe = quantization_recipe(allocation(bits, "bits"), method=method, group_size=32)
    model = _oneshot(tmp_path, recipe)
    for name, width in bits.items():
        module = model.get_submodule(name)
        assert module.quantization_scheme.weights.num_bits == width
        groups = (
            module.weight.detach().float().unflatten(1, (-1, 32))
            / module.weight_scale.detach().float()[..., None]
        )
        if method == "gptq":
            assert torch.allclose(groups, groups.round(), atol=1e-2)
            assert 2 < groups.round().unique().numel() <= 2**width
    assert not hasattr(model.lm_head, "quantization_scheme")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activations", [False, True], ids=["weights", "inputs"])
def test_llm_compressor_gives_the_formats_back_after_loading(
    tmp_path: Path, activations: bool
) -> None:
    llmcompressor = pytest.importorskip("llmcompressor")
    datasets = pytest.importorskip("datasets")
    names = ["fp8", "nvfp4", "w4a16", "w8a16", "int4", "int3-g64"]
    formats = mixed(*(names[:3] if activations else names))
    modules = [name for name, _ in wide_llama().named_modules()]
    recipe = quantization_recipe(chosen(formats), modules, activations=activations)
    (tmp_path / "recipe.yaml").write_text(recipe)
    saved(tmp_path / "model")
    model, saved_tokenizer = st.open_language_model(tmp_path / "model")
    ids = rows()
    data = datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 32] * len(ids)})
    llmcompressor.oneshot(
        model=model, tokenizer=saved_tokenizer, dataset=data, recipe=str(tmp_path / "recipe.yaml"),
        max_seq_length=32, num_calibration_samples=16,
    )  # fmt: skip
    expected = logits(model)
    model.save_pretrained(tmp_path / "out", save_compressed=True)
    saved_tokenizer.save_pretrained(tmp_path / "out")
    loaded, _ = st.open_language_model(tmp_path / "out")
    for name, own in formats.items():
        weights = loaded.get_submodule(name).quantization_scheme.weights
        integers = integers_of(own)
        bits = integers.bits if integers else {"fp8": 8, "nvfp4": 4}[own]
        assert (weights.num_bits, str(weights.type)) == (bits, "int" if integers else "float")
        if integers:
            assert (weights.group_size, weights.symmetric) == (integers.group, integers.symmetric)
    assert torch.equal(logits(loaded), expected)
    assert change(expected, logits(wide_llama())) < 0.5


@pytest.mark.parametrize(
    "name", ["0", "null", "yes", "1e3", "1:30", "~", "blocks.0.fc: x", "größe"]
)
def test_names_that_yaml_could_take_for_something_else_stay_names(name: str) -> None:
    recipe = yaml.safe_load(pruning_recipe(allocation({name: 0.5, "other": 0.25}), [name, "other"]))
    modifier = recipe["spectail_stage"]["pruning_modifiers"]["WandaPruningModifier"]
    assert modifier["targets"] == [name, "other"]
    assert modifier["sparsity"] == [0.5, 0.25]


@pytest.mark.parametrize("ratio", [1e-17, 1 / 3, 5e-324, np.float64(0.7), 0.0, 1 - 2**-53])
def test_every_ratio_comes_back_as_the_same_number(ratio: Any) -> None:
    recipe = yaml.safe_load(pruning_recipe(allocation({"fc": ratio}), ["fc"]))
    modifier = recipe["spectail_stage"]["pruning_modifiers"]["WandaPruningModifier"]
    assert modifier["sparsity"] == [float(ratio)]
