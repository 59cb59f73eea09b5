"""Fused attention: cut as the forward pass of each family cuts it, live and from a
file, or kept whole and said so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from spectail.models.open import open_source

from .fused import FAMILIES, SIZES, blocks, codegen, per_group, per_head

H, S, WIDTH = 4, 8, 32
"""Heads, rows of a head, inputs."""


def folder(path: Path, state: Any, config: Any) -> Path:
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in state.items()},
        path / "model.safetensors",
    )
    (path / "config.json").write_text(json.dumps(config))
    return path


def parts(source: Any, weight: str) -> tuple[dict[str, Any], list[Any]]:
    """Matrices of a fused weight by the name of the part, and the notes."""
    stem = weight.removesuffix(".weight")
    found = {
        x.name.removeprefix(stem).lstrip("."): x
        for x in open_source(source).layers
        if x.name.startswith(stem)
    }
    return {name: layer.read()[0] for name, layer in found.items()}, [
        layer.note for layer in found.values()
    ]


def same(found: Any, expected: Any) -> Any:
    return set(found) == set(expected) and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_transformers(family: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    case = FAMILIES[family]
    model: Any = case.build()
    expected = case.oracle(model.state_dict()[case.weight])
    files = folder(
        tmp_path, model.state_dict(), json.loads(model.config.to_json_string(use_diff=False))
    )
    for source in (model, files):
        found, notes = parts(source, case.weight)
        assert same(found, expected)
        assert not any(notes)


@pytest.mark.parametrize("family", [name for name, case in FAMILIES.items() if case.output])
@torch.no_grad()
def test_the_parts_do_in_the_model_what_their_names_say(family: Any) -> None:
    """Without values the heads put out nothing; without queries the keys have no effect."""
    pytest.importorskip("transformers")
    case = FAMILIES[family]
    model = case.build()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    stem = case.weight.removesuffix(".weight")
    layers = {x.kind: x for x in open_source(model).layers if x.name.startswith(stem)}
    seen = []
    module = model.get_submodule(case.output)
    module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    ids = torch.arange(5)[None] + 1

    def heads_out() -> Any:
        model(input_ids=ids)
        return seen.pop()

    before = {kind: layer.read().clone() for kind, layer in layers.items()}
    usual = heads_out()
    layers["v"].write(torch.zeros_like(before["v"]))
    assert usual.abs().max() > 0
    assert heads_out().abs().max() == 0
    layers["v"].write(before["v"])
    layers["k"].write(before["k"].flip(1) * 50)
    assert not torch.allclose(heads_out(), usual)
    layers["q"].write(torch.zeros_like(before["q"]))
    other_keys = heads_out()
    layers["k"].write(before["k"])
    assert torch.equal(other_keys, heads_out())


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, WIDTH)


GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": WIDTH}
BLOCK = "transformer.blocks.1.attn."
REMOTE: dict[str, tuple[str, int, dict[str, Any], Callable[..., Any]]] = {
    "internlm2": ("model.layers.1.attention.wqkv", 64, GROUPED, per_group(2, 2)),
    "chatglm2": (
        "transformer.encoder.layers.1.self_attention.query_key_value",
        48,
        {
            "model_type": "chatglm",
            "num_attention_heads": 4,
            "kv_channels": 6,
            "hidden_size": WIDTH,
            "multi_query_attention": True,
            "multi_query_group_num": 2,
        },
        blocks(24, 12, 12),
    ),
    "chatglm": (
        "transformer.layers.1.attention.query_key_value",
        96,
        {"num_attention_heads": 4, "hidden_size": WIDTH},
        per_head(4),
    ),
    "baichuan": (
        "model.layers.1.self_attn.W_pack",
        96,
        {"num_attention_heads": 4, "hidden_size": WIDTH},
        blocks(32, 32, 32),
    ),
    "qwen": (
        "transformer.h.1.attn.c_attn",
        96,
        {"num_attention_heads": 4, "hidden_size": WIDTH, "kv_channels": 8},
        blocks(32, 32, 32),
    ),
    "moss": ("transformer.h.1.attn.qkv_proj", 96, {"n_head": 4, "n_embd": WIDTH}, codegen),
    "openelm": (
        "transformer.layers.1.attn.qkv_proj",
        64,
        {"num_query_heads": [2, 4], "num_kv_heads": [1, 2], "head_dim": 8, "model_dim": WIDTH},
        blocks(32, 16, 16),
    ),
    "mpt": (
        f"{BLOCK}Wqkv",
        64,
        {
            "n_heads": 4,
            "d_model": WIDTH,
            "attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2},
        },
        blocks(32, 16, 16),
    ),
    "mpt, one shared head": (
        f"{BLOCK}Wqkv",
        48,
        {"n_heads": 4, "d_model": WIDTH, "attn_config": {"attn_type": "multiquery_attention"}},
        blocks(32, 8, 8),
    ),
    "phi3small": ("model.layers.1.self_attn.query_key_value", 64, GROUPED, per_group(2, 2)),
    "RefinedWeb": (
        "transformer.h.1.self_attention.query_key_value",
        64,
        {"n_head": 4, "n_head_kv": 2, "hidden_size": WIDTH},
        per_group(2, 2),
    ),
    "bailing_moe": (
        "model.layers.1.attention.query_key_value",
        64,
        GROUPED | {"head_dim": 8},
        blocks(32, 16, 16),
    ),
    "codeshell": (
        "transformer.h.1.attn.c_attn",
        64,
        {"n_head": 4, "n_embd": WIDTH, "num_query_groups": 2},
        blocks(32, 16, 16),
    ),
    "nomic_bert": (
        "encoder.layers.1.attn.Wqkv",
        96,
        {"n_head": 4, "n_embd": WIDTH},
        blocks(32, 32, 32),
    ),
    "jina, wide heads": (
        "model.layers.1.self_attn.qkv_proj",
        96,
        GROUPED | {"head_dim": 12},
        blocks(48, 24, 24),
    ),
    "internvl": (
        "language_model.model.layers.1.attention.wqkv",
        64,
        {
            "llm_config": GROUPED | {"model_type": "internlm2"},
            "vision_config": {"num_attention_heads": 2},
        },
        per_group(2, 2),
    ),
    "internvl, vision": (
        "vision_model.encoder.layers.1.attn.qkv",
        96,
        {
            "llm_config": GROUPED | {"model_type": "internlm2"},
            "vision_config": {"num_attention_heads": 2},
        },
        blocks(32, 32, 32),
    ),
    "a vision tower with shared heads": (
        "model.vision_tower.blocks.1.attn.qkv",
        64,
        {"text_config": {"num_attention_heads": 2, "head_dim": 64}, "vision_config": GROUPED},
        blocks(32, 16, 16),
    ),
    "an audio tower with shared heads": (
        "thinker.audio_tower.layers.1.attn.qkv_proj",
        64,
        {
            "thinker_config": {
                "text_config": {"num_attention_heads": 2, "head_dim": 64},
                "audio_config": GROUPED,
            }
        },
        blocks(32, 16, 16),
    ),
    "fuyu": (
        "language_model.model.layers.1.self_attn.query_key_value",
        96,
        {
            "text_config": {
                "model_type": "persimmon",
                "num_attention_heads": 4,
                "hidden_size": WIDTH,
            }
        },
        per_head(4),
    ),
    "a vision tower that no configuration describes": (
        "visual.blocks.1.attn.qkv",
        96,
        GROUPED | {"vocab_size": 40, "mm_vision_tower": "openai/clip"},
        blocks(32, 32, 32),
    ),
}


@pytest.mark.parametrize("case", REMOTE)
def test_families_of_remote_code(case: str, tmp_path: Path) -> None:
    name, count, config, oracle = REMOTE[case]
    if not any(isinstance(value, dict) and "model_type" in value for value in config.values()):
        config = {"model_type": case.partition(",")[0]} | config
    weight = rows(count)
    found, notes = parts(folder(tmp_path, {f"{name}.weight": weight}, config), name)
    assert same(found, oracle(weight))
    assert not any(notes)


WHOLE = {
    "no configuration": (
        "model.layers.1.self_attn.qkv_proj",
        64,
        {},
        "no configuration tells the heads",
    ),
    "an unknown order": (
        "encoder.layers.1.attention.query_key_value",
        96,
        {},
        "not known without a configuration",
    ),
    "an unknown family": (
        "model.layers.1.attention.query_key_value",
        96,
        GROUPED | {"model_type": "own"},
        "not known of model type 'own'",
    ),
    "codegen without a configuration": (
        "transformer.h.1.attn.qkv_proj",
        96,
        {},
        "not known without a configuration",
    ),
    "Qwen-VL's vision tower": (
        "visual.blocks.1.attn.in_proj",
        96,
        {},
        "not known without a configuration",
    ),
    "numbers of another model": (
        "model.layers.1.self_attn.qkv_proj",
        64,
        GROUPED | {"model_type": "phi3", "head_dim": 16},
        "64 rows are not the 4 + 2 x 2 heads of 16 rows",
    ),
    "shared heads that are not there": (
        "model.layers.1.self_attn.qkv_proj",
        96,
        GROUPED | {"model_type": "phi3"},
        "96 rows are not the 4 + 2 x 2 heads of 8 rows",
    ),
    "groups that do not fit": (
        "model.layers.1.attention.wqkv",
        72,
        GROUPED | {"model_type": "internlm2"},
        "72 rows are not the 4 + 2 x 2 heads of 8 rows",
    ),
    "heads of the text for a vision tower": (
        "model.visual.blocks.1.attn.qkv",
        64,
        {"text_config": GROUPED, "audio_config": {}},
        "no configuration tells the heads",
    ),
    "a delta net without its heads": (
        "model.layers.1.linear_attn.in_proj_qkvz",
        64,
        {},
        "no configuration tells",
    ),
    "a key and value without a query": (
        "layers.1.attn.to_kv",
        64,
        {},
        "nothing in the model confirms",
    ),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_does_not_fit_stays_whole_and_says_why(case: str, tmp_path: Path) -> None:
    name, count, config, why = WHOLE[case]
    weight = rows(count)
    (layer,) = open_source(folder(tmp_path, {f"{name}.weight": weight}, config)).layers
    assert (layer.name, layer.kind) == (name, "kv" if "kv" in name.replace("qkv", "") else "qkv")
    assert why in layer.note
    assert torch.equal(layer.read()[0], weight)


def test_three_equal_blocks_need_no_configuration() -> None:
    state = {
        "blocks.1.attn.qkv.weight": rows(96),
        "stages.0.attn.qkv.weight": torch.randn(192, 32),
        "stages.0.attn.proj.weight": torch.randn(64, 64),
        "text.in_proj_weight": rows(96),
    }
    layers: Any = {x.name: x for x in open_source(state).layers}
    for name, height in (
        ("blocks.1.attn.qkv", 32),
        ("stages.0.attn.qkv", 64),
        ("text.in_proj_weight", 32),
    ):
        for i, kind in enumerate("qkv"):
            weight = state[f"{name}.weight" if f"{name}.weight" in state else name]
            assert torch.equal(
                layers[f"{name}.{kind}"].read()[0], weight[i * height : (i + 1) * height]
            )


def test_attention_with_its_own_key_and_value_sizes() -> None:
    model = torch.nn.MultiheadAttention(8, 2, kdim=6, vdim=5)
    kinds = {layer.name: (layer.kind, layer.cols) for layer in open_source(model).layers}
    assert kinds == {
        "q_proj_weight": ("q", 8),
        "k_proj_weight": ("k", 6),
        "v_proj_weight": ("v", 5),
        "out_proj": ("o", 8),
    }


def test_levit_tells_its_heads_by_its_bias_table() -> None:
    # heads 3, keys of 4 rows, values of 8: view(3, 16), then split([4, 4, 8])
    state = {
        "blocks.1.attn.attention_biases": torch.randn(3, 49),
        "blocks.1.attn.qkv.weight": torch.randn(48, 24),
        "blocks.1.attn.proj.weight": torch.randn(24, 24),
    }
    weight = state["blocks.1.attn.qkv.weight"].view(3, 16, 24)
    found, _ = parts(state, "blocks.1.attn.qkv")
    for kind, piece in zip("qkv", weight.split([4, 4, 8], dim=1), strict=True):
        assert torch.equal(found[kind], piece.reshape(-1, 24))


def test_a_fused_key_and_value_is_cut_beside_its_query() -> None:
    state = {"layers.0.attn.to_kv.weight": rows(48), "layers.0.attn.to_q.weight": rows(24)}
    found, _ = parts(state, "layers.0.attn.to_kv")
    assert torch.equal(found["k"], state["layers.0.attn.to_kv.weight"][:24])
    assert torch.equal(found["v"], state["layers.0.attn.to_kv.weight"][24:])


def test_input_projections_of_other_layers_are_no_attention() -> None:
    state = {
        f"layers.0.{owner}.in_proj.weight": rows(96) for owner in ("mixer", "mamba", "conv", "mlp")
    }
    assert {layer.kind for layer in open_source(state).layers} == {"linear"}
    assert not any(layer.note for layer in open_source(state).layers)


def test_latent_attention_keeps_its_names() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "q_lora_rank": 12,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    }
    config = transformers.DeepseekV3Config(
        **SIZES, **sizes, intermediate_size=48, num_key_value_heads=4, first_k_dense_replace=2
    )
    layers = {x.name: x for x in open_source(transformers.DeepseekV3ForCausalLM(config)).layers}
    prefix = "model.layers.1.self_attn."
    found = {
        name.removeprefix(prefix): (x.kind, x.rows, x.cols)
        for name, x in layers.items()
        if prefix in name
    }
    assert found == {
        "q_a_proj": ("q", 12, 32),
        "q_b_proj": ("q", 48, 12),
        "kv_a_proj_with_mqa": ("kv", 20, 32),
        "kv_b_proj": ("kv", 64, 16),
        "o_proj": ("o", 32, 32),
    }
    assert not any(layers[prefix + name].note for name in found)
