"""Adapters: one row for each target, the delta computed from its factors."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectail.models.open import open_source

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


def adapted(**options: Any) -> tuple[Any, set[Any]]:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    base = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=20, num_key_value_heads=1, **sizes)
    )
    names = {layer.name for layer in open_source(base).layers}
    options = {
        "r": 2,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj"],
        "init_lora_weights": False,
    } | options
    return adapt(base, **options), names


def adapt(base: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(base, peft.LoraConfig(**options))


def save(model: Any, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"down_proj": 4},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
    },
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_live_adapter_equals_its_folder_and_pefts_own_delta(case: str, tmp_path: Path) -> None:
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


def test_base_weights_are_those_of_the_base_model() -> None:
    model, _ = adapted()
    (layer,) = [
        item for item in open_source(model).layers if item.name == "model.layers.0.self_attn.q_proj"
    ]
    assert torch.equal(
        layer.read()[0], model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
    )


def test_gpt2_adapter_is_output_by_input() -> None:
    base = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)
    )
    model = adapt(
        base, r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False
    )
    layers = {layer.name: layer for layer in open_source(model).layers}
    delta = layers["transformer.h.0.attn.c_attn.lora"]
    target = model.base_model.model.transformer.h[0].attn.c_attn
    assert (delta.rows, delta.cols) == (24, 8)
    torch.testing.assert_close(delta.read()[0], target.get_delta_weight("default").T.double())
    assert "transformer.h.0.attn.c_attn.q" in layers


def test_modules_that_are_saved_whole_keep_their_name(tmp_path: Path) -> None:
    model, _ = adapted(modules_to_save=["lm_head"])
    save(model, tmp_path)
    live = {layer.name: layer for layer in open_source(model).layers}
    stored = {layer.name: layer for layer in open_source(tmp_path).layers}
    used = model.base_model.model.lm_head.modules_to_save["default"].weight
    assert torch.equal(live["lm_head"].read()[0], used)
    assert torch.equal(stored["lm_head"].read(), live["lm_head"].read())
    # What the adapter replaces is listed, and takes part in nothing.
    assert "does not use" in str(live["lm_head.original_module"].no_weight)
    whole = {layer.name: layer for layer in open_source(model.state_dict()).layers}
    assert whole["lm_head.original_module"].no_weight == live["lm_head.original_module"].no_weight
    assert [name for name, layer in live.items() if layer.no_weight] == ["lm_head.original_module"]


def test_convolution_adapter() -> None:
    model = adapt(
        nn.Sequential(nn.Conv2d(3, 5, 3)), r=2, target_modules=["0"], init_lora_weights=False
    )
    (delta,) = [layer for layer in open_source(model).layers if layer.kind == "lora"]
    assert (delta.name, delta.n_matrices, delta.rows, delta.cols) == ("0.lora", 9, 5, 3)
    expected = model.base_model.model[0].get_delta_weight("default").flatten(2).permute(2, 0, 1)
    torch.testing.assert_close(delta.read().float(), expected)


def test_two_adapters_are_told_apart() -> None:
    model, _ = adapted()
    model.add_adapter(
        "second", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    names = [layer.name for layer in open_source(model).layers if layer.kind == "lora"]
    assert "model.layers.0.self_attn.q_proj.lora.second" in names
    assert "model.layers.0.self_attn.q_proj.lora.default" in names
    assert "model.layers.0.mlp.down_proj.lora" in names


def test_adapter_file_without_its_configuration_says_so(tmp_path: Path) -> None:
    model, _ = adapted()
    save(model, tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    source = open_source(tmp_path / "adapter_model.safetensors")
    assert "scaling" in source.notes[0]
    name = "model.layers.0.self_attn.q_proj"
    (layer,) = [item for item in source.layers if item.name == name + ".lora"]
    target = model.base_model.model.get_submodule(name)
    torch.testing.assert_close(layer.read()[0] * 4, target.get_delta_weight("default").double())


def test_scaling_is_alpha_over_rank() -> None:
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
def test_factors_that_make_no_delta_keep_a_row(
    a: tuple[int, int], b: tuple[int, int] | None, problem: str
) -> None:
    state = {"q.lora_A.weight": torch.ones(a)} | ({"q.lora_B.weight": torch.ones(b)} if b else {})
    (layer,) = open_source(state).layers
    assert problem in str(layer.problem)


def test_adapter_of_fused_experts_is_not_multiplied_across_experts(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    from safetensors.torch import save_file

    prefix = "base_model.model.mlp.experts."
    save_file(
        {prefix + "lora_A.weight": torch.ones(6, 3), prefix + "lora_B.weight": torch.ones(4, 6)},
        tmp_path / "adapter_model.safetensors",
    )
    (layer,) = open_source(tmp_path).layers
    assert "fused parameter" in str(layer.problem)


def test_an_adapter_says_whether_the_model_uses_it() -> None:
    model, _ = adapted()
    model.add_adapter(
        "second", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    notes = {layer.name: layer.note for layer in open_source(model).layers if layer.kind == "lora"}
    assert notes["model.layers.0.self_attn.q_proj.lora.default"] == ""
    assert "second is not active" in notes["model.layers.0.self_attn.q_proj.lora.second"]
    model.set_adapter("second")
    notes = {layer.name: layer.note for layer in open_source(model).layers if layer.kind == "lora"}
    assert "default is not active" in notes["model.layers.0.self_attn.q_proj.lora.default"]
    with model.disable_adapter():
        assert all(layer.note for layer in open_source(model).layers if layer.kind == "lora")


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_merged_adapter_gives_the_same_change_and_says_so(use_dora: bool) -> None:
    model, _ = adapted(use_dora=use_dora)
    before = {layer.name: layer.read().clone() for layer in open_source(model).layers}
    model.merge_adapter()
    after = {layer.name: layer for layer in open_source(model).layers}
    name = "model.layers.0.self_attn.q_proj"
    torch.testing.assert_close(
        after[f"{name}.lora"].read(), before[f"{name}.lora"], rtol=1e-4, atol=1e-6
    )
    assert "is merged" in after[f"{name}.lora"].note
    merged = before[name].double() + before[f"{name}.lora"]
    torch.testing.assert_close(after[name].read().double(), merged, rtol=1e-4, atol=1e-6)


def test_adapters_of_two_forms_on_one_layer() -> None:
    model, _ = adapted()
    options = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}
    model.add_adapter("second", peft.LoraConfig(use_dora=True, **options))
    name = "model.layers.0.self_attn.q_proj"
    rows = {layer.name: layer for layer in open_source(model).layers if layer.name.startswith(name)}
    assert set(rows) == {name, f"{name}.lora.default", f"{name}.lora.second"}
    layer = copy.deepcopy(model.base_model.model.get_submodule(name)).double()
    base = layer.weight.detach().clone()
    layer.merge(adapter_names=["second"])
    torch.testing.assert_close(rows[f"{name}.lora.second"].read()[0], layer.weight.detach() - base)


def experts_adapted(parameters: Any) -> Any:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 4,
    }
    options = {"num_experts": 3, "moe_intermediate_size": 6, "num_key_value_heads": 1}
    base = transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(vocab_size=20, **options, **sizes)
    )
    paths = [f"mlp.experts.{name}" for name in parameters]
    return adapt(
        base, r=2, lora_alpha=6, target_modules=[], target_parameters=paths, init_lora_weights=False
    )


@pytest.mark.parametrize(
    "parameters", [["gate_up_proj", "down_proj"], ["gate_up_proj"], ["down_proj"]]
)
def test_adapters_of_fused_experts_give_a_change_for_each_expert(
    parameters: list[str], tmp_path: Path
) -> None:
    model = experts_adapted(parameters)
    save(model, tmp_path)
    base = copy.deepcopy(model).unload().model.layers[0].mlp.experts
    merged = copy.deepcopy(model).double().merge_and_unload().model.layers[0].mlp.experts
    expected = {
        f"model.layers.0.mlp.experts.{name}[{i}].lora": (
            getattr(merged, name) - getattr(base, name)
        ).detach()[i]
        for name in parameters
        for i in range(3)
    }
    for source in (open_source(model), open_source(tmp_path)):
        rows = {layer.name: layer for layer in source.layers if layer.kind == "lora"}
        assert set(rows) == set(expected)
        for name, change in expected.items():
            assert rows[name].problem is None
            torch.testing.assert_close(rows[name].read()[0], change, rtol=1e-5, atol=1e-6)
    names = {
        layer.name
        for layer in open_source(model).layers
        if "experts" in layer.name and layer.kind != "lora"
    }
    assert "model.layers.0.mlp.experts.gate_up_proj[0].gate" in names


def test_tokens_that_are_trained_change_the_embedding_once() -> None:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = transformers.LlamaConfig(
        vocab_size=20, num_key_value_heads=1, tie_word_embeddings=True, **sizes
    )
    model = adapt(
        transformers.LlamaForCausalLM(config),
        r=2,
        target_modules=["q_proj"],
        trainable_token_indices=[1, 4],
    )
    adapter = model.base_model.model.model.embed_tokens.token_adapter
    with torch.no_grad():
        adapter.trainable_tokens_delta["default"].normal_()
    rows = {layer.name: layer for layer in open_source(model).layers}
    assert {name for name in rows if "embed" in name or "head" in name} == {
        "model.embed_tokens",
        "model.embed_tokens.lora",
    }
    change = torch.zeros(20, 8)
    change[[1, 4]] = (
        adapter.trainable_tokens_delta["default"].detach()
        - adapter.base_layer.weight.detach()[[1, 4]]
    )
    torch.testing.assert_close(rows["model.embed_tokens.lora"].read()[0].float(), change)


def test_attention_module_adapter(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(8, 2)

    model = adapt(Net(), r=2, lora_alpha=6, target_modules=["mha"], init_lora_weights=False)
    save(model, tmp_path)
    layer = model.base_model.model.mha
    expected = {"mha.lora": layer.get_delta_weight("default")}
    expected["mha.out_proj.lora"] = layer.base_layer.out_proj.get_delta_weight("default")
    for source in (open_source(model), open_source(tmp_path)):
        rows = {row.name: row for row in source.layers if row.kind == "lora"}
        assert set(rows) == set(expected)
        assert all(
            torch.allclose(rows[n].read()[0].float(), change, atol=1e-6)
            for n, change in expected.items()
        )


def test_prompts_leave_the_names_of_the_base_model() -> None:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    base = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=20, num_key_value_heads=1, **sizes)
    )
    names = [layer.name for layer in open_source(base).layers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(
            base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
        )
    layers = open_source(model).layers
    assert [layer.name for layer in layers if layer.no_weight is None] == names
    assert [layer.name for layer in layers if layer.no_weight] == [
        "prompt_encoder.default.embedding"
    ]


def test_a_base_weight_that_is_not_in_memory_is_said() -> None:
    model, _ = adapted(use_dora=True)
    target = model.base_model.model.model.layers[0].self_attn.q_proj
    target.base_layer.to("meta")
    rows = {layer.name: layer for layer in open_source(model).layers}
    assert "not in memory" in str(rows["model.layers.0.self_attn.q_proj.lora"].problem)


class LoraLinear(nn.Module):
    """As in torchtune: the factors are modules beside the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.rank, self.alpha = 2, 6.0
        self.lora_a, self.lora_b = nn.Linear(4, 2, bias=False), nn.Linear(2, 5, bias=False)


def test_modules_of_other_libraries_state_their_scale() -> None:
    model = nn.ModuleDict({"q_proj": LoraLinear()})
    rows: Any = {layer.name: layer for layer in open_source(model).layers}
    assert set(rows) == {"q_proj", "q_proj.lora"}
    layer: Any = model["q_proj"]
    torch.testing.assert_close(
        rows["q_proj.lora"].read()[0].float(), 3 * layer.lora_b.weight @ layer.lora_a.weight
    )


def test_adapters_that_are_nested_in_each_other() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 8))
    lora = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    loha = peft.LoHaConfig(r=2, target_modules=["0"], init_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftMixedModel(base, lora, adapter_name="first")
        model.add_adapter("second", loha)
    rows = {layer.name: layer for layer in open_source(model).layers}
    assert set(rows) == {"0", "0.lora.first", "0.lora.second"}
    outer = model.base_model.model[0]
    changes = {
        "second": outer.get_delta_weight("second"),
        "first": outer.base_layer.get_delta_weight("first"),
    }
    for adapter, change in changes.items():
        torch.testing.assert_close(rows[f"0.lora.{adapter}"].read()[0].float(), change)
