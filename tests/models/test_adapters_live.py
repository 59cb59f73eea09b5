"""Adapters: one row for each target, the delta computed from its factors."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from spectail.models.open import open_source

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def adapted(**options):
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, num_key_value_heads=1, **sizes))
    names = {layer.name for layer in open_source(base).layers}
    options = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False} | options
    return adapt(base, **options), names


def adapt(base, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(base, peft.LoraConfig(**options))


def save(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)


OPTIONS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"down_proj": 4}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_live_adapter_equals_its_folder_and_pefts_own_delta(case, tmp_path):
    model, base_names = adapted(**OPTIONS[case])
    save(model, tmp_path)
    live = {layer.name: layer for layer in open_source(model).layers}
    stored = {layer.name: layer for layer in open_source(tmp_path).layers if layer.kind == "lora"}
    deltas = {name: layer for name, layer in live.items() if layer.kind == "lora"}
    assert set(live) - set(deltas) == base_names
    assert set(stored) == set(deltas)
    for name, layer in deltas.items():
        target = model.base_model.model.get_submodule(name.removesuffix(".lora"))
        expected = target.get_delta_weight("default")
        assert layer.read().dtype == torch.float64
        assert (1, *expected.shape) == (layer.n_matrices, layer.rows, layer.cols)
        torch.testing.assert_close(layer.read()[0].float(), expected)
        assert stored[name] == layer
        assert torch.equal(stored[name].read(), layer.read())


def test_base_weights_are_those_of_the_base_model():
    model, _ = adapted()
    (layer,) = [item for item in open_source(model).layers if item.name == "model.layers.0.self_attn.q_proj"]
    assert torch.equal(layer.read()[0], model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight)


def test_gpt2_adapter_is_output_by_input():
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2))
    model = adapt(base, r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    layers = {layer.name: layer for layer in open_source(model).layers}
    delta = layers["transformer.h.0.attn.c_attn.lora"]
    target = model.base_model.model.transformer.h[0].attn.c_attn
    assert (delta.rows, delta.cols) == (24, 8)
    torch.testing.assert_close(delta.read()[0], target.get_delta_weight("default").T.double())
    assert "transformer.h.0.attn.c_attn.q" in layers


def test_modules_that_are_saved_whole_keep_their_name(tmp_path):
    model, _ = adapted(modules_to_save=["lm_head"])
    save(model, tmp_path)
    with torch.no_grad():
        model.base_model.model.lm_head.original_module.weight.zero_()
    live = {layer.name: layer for layer in open_source(model).layers}
    stored = {layer.name: layer for layer in open_source(tmp_path).layers}
    assert live["lm_head"].read().any()
    assert torch.equal(stored["lm_head"].read(), live["lm_head"].read())
    assert not live["lm_head.original_module"].read().any()


def test_convolution_adapter():
    model = adapt(nn.Sequential(nn.Conv2d(3, 5, 3)), r=2, target_modules=["0"], init_lora_weights=False)
    (delta,) = [layer for layer in open_source(model).layers if layer.kind == "lora"]
    assert (delta.name, delta.n_matrices, delta.rows, delta.cols) == ("0.lora", 9, 5, 3)
    expected = model.base_model.model[0].get_delta_weight("default").flatten(2).permute(2, 0, 1)
    torch.testing.assert_close(delta.read().float(), expected)


def test_two_adapters_are_told_apart():
    model, _ = adapted()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    names = [layer.name for layer in open_source(model).layers if layer.kind == "lora"]
    assert "model.layers.0.self_attn.q_proj.lora.second" in names
    assert "model.layers.0.self_attn.q_proj.lora.default" in names
    assert "model.layers.0.mlp.down_proj.lora" in names


def test_adapter_file_without_its_configuration_says_so(tmp_path):
    model, _ = adapted()
    save(model, tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    source = open_source(tmp_path / "adapter_model.safetensors")
    assert "scaling" in source.notes[0]
    name = "model.layers.0.self_attn.q_proj"
    (layer,) = [item for item in source.layers if item.name == name + ".lora"]
    target = model.base_model.model.get_submodule(name)
    torch.testing.assert_close(layer.read()[0] * 4, target.get_delta_weight("default").double())


def test_scaling_is_alpha_over_rank():
    factors = {
        "base_model.model.q.lora_A.weight": torch.ones(2, 3),
        "base_model.model.q.lora_B.weight": torch.ones(4, 2),
    }
    (layer,) = open_source(factors).layers
    assert (layer.name, layer.rows, layer.cols) == ("q.lora", 4, 3)
    assert math.isclose(layer.read().sum(), 24)


@pytest.mark.parametrize(
    ("a", "b", "problem"),
    [
        ((2, 3), (4, 3), "do not multiply"),
        ((2, 3), None, "lora_B is missing"),
    ],
)
def test_factors_that_make_no_delta_keep_a_row(a, b, problem):
    state = {"q.lora_A.weight": torch.ones(a)} | ({"q.lora_B.weight": torch.ones(b)} if b else {})
    (layer,) = open_source(state).layers
    assert problem in layer.problem


def test_adapter_of_fused_experts_is_not_multiplied_across_experts(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    from safetensors.torch import save_file

    prefix = "base_model.model.mlp.experts."
    save_file(
        {prefix + "lora_A.weight": torch.ones(6, 3), prefix + "lora_B.weight": torch.ones(4, 6)},
        tmp_path / "adapter_model.safetensors",
    )
    (layer,) = open_source(tmp_path).layers
    assert "fused parameter" in layer.problem
