"""Fused gate and up projections and stacked experts, against the splits
of the layers' own forward passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from spectail.models.open import open_source

from .fused import FEW_LAYERS, build


def folder(path: Path, state: Any, config: Any) -> Path:
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in state.items()},
        path / "model.safetensors",
    )
    (path / "config.json").write_text(json.dumps(config))
    return path


def layers_of(source: Any) -> dict[str, Any]:
    return {layer.name: layer for layer in open_source(source).layers}


def upper(weight: torch.Tensor) -> dict[str, Any]:
    return {"gate": weight.chunk(2)[0], "up": weight.chunk(2)[1]}


def lower(weight: torch.Tensor) -> dict[str, Any]:
    return {"gate": weight.chunk(2)[1], "up": weight.chunk(2)[0]}


def in_turn(weight: torch.Tensor) -> dict[str, Any]:
    return {"gate": weight[::2], "up": weight[1::2]}


GATED = {
    # fused layer, down projection, model type, oracle
    "phi3": ("model.layers.0.mlp.gate_up_proj", "down_proj", "phi3", upper),
    "dinov2": ("encoder.layer.0.mlp.weights_in", "weights_out", "dinov2", upper),
    "dinov2, first release": ("blocks.0.mlp.w12", "w3", "", upper),
    "modernbert": ("layers.0.mlp.Wi", "Wo", "modernbert", upper),
    "granite": (
        "model.layers.0.shared_mlp.input_linear",
        "output_linear",
        "granitemoehybrid",
        upper,
    ),
    "llama.cpp": ("blk.0.ffn_up", "ffn_down", "", upper),
    "chatglm": (
        "transformer.encoder.layers.0.mlp.dense_h_to_4h",
        "dense_4h_to_h",
        "chatglm",
        upper,
    ),
    "gte": ("encoder.layer.0.mlp.up_gate_proj", "down_proj", "new", lower),
    "moonshine": ("model.decoder.layers.0.mlp.fc1", "fc2", "moonshine", lower),
    "moshi": ("model.layers.0.mlp.fc1", "fc2", "moshi", upper),
    "aya_vision": ("multi_modal_projector.linear_1", "linear_2", "aya_vision", lower),
    "diffusers": ("transformer_blocks.0.ff.net.0.proj", "../net.2", "", lower),
    "phi3small": ("model.layers.0.mlp.up_proj", "down_proj", "phi3small", in_turn),
    "gpt_oss, experts as a list": (
        "model.layers.0.mlp.experts.gate_up_projs.1",
        "down_projs.1",
        "gpt_oss",
        in_turn,
    ),
}


def pair(name: str, down: Any, *, rows: int = 48, taken: int = 24) -> dict[str, torch.Tensor]:
    stem = name.rpartition(".")[0]
    down_name = (
        f"{stem.rpartition('.')[0].rpartition('.')[0]}.{down[3:]}"
        if down.startswith("../")
        else f"{stem}.{down}"
    )
    return {f"{name}.weight": torch.randn(rows, 16), f"{down_name}.weight": torch.randn(16, taken)}


@pytest.mark.parametrize("case", GATED)
def test_gate_and_up(case: str, tmp_path: Path) -> None:
    name, down, model_type, oracle = GATED[case]
    state = pair(name, down)
    layers = layers_of(folder(tmp_path, state, {"model_type": model_type}))
    for kind, expected in oracle(state[f"{name}.weight"]).items():
        layer = layers[f"{name}.{kind}"]
        assert layer.kind == kind
        assert torch.equal(layer.read()[0], expected)
    assert name not in layers


WHOLE = {
    "an order that is not known": ("blocks.0.mlp.fc1", "fc2", 48, "order that is not known", "fc1"),
    "a down projection that does not fit": (
        "layers.0.mlp.gate_up_proj",
        "down_proj",
        40,
        "not twice the 24",
        "gate_up",
    ),
    "a plain MLP": ("blocks.0.mlp.fc1", "fc2", 24, "", "fc1"),
    "T5": ("encoder.block.0.layer.1.DenseReluDense.wi", "wo", 24, "", "fc1"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_is_not_surely_gate_and_up_stays_whole(case: str) -> None:
    name, down, rows, why, kind = WHOLE[case]
    state = pair(name, down, rows=rows)
    layer = layers_of(state)[name]
    assert layer.kind == kind
    assert (why in layer.note) if why else not layer.note
    assert torch.equal(layer.read()[0], state[f"{name}.weight"])


def test_the_audio_part_of_phi4_has_the_gate_below() -> None:
    config = {
        "model_type": "phi4_multimodal",
        "audio_config": {"model_type": "phi4_multimodal_audio"},
    }
    text, audio = (
        "model.layers.0.mlp.gate_up_proj",
        "model.embed_tokens_extend.audio_embed.encoder.encoders.0.gate_up_proj",
    )
    from spectail.models.build import build_source
    from spectail.models.lazy_tensor import in_memory

    state = pair(text, "down_proj") | pair(audio, "down_proj")
    tensors = [in_memory(name, tensor) for name, tensor in state.items()]
    layers = {
        layer.name: layer for layer in build_source("phi4", "", tensors, config=config).layers
    }
    assert torch.equal(layers[f"{text}.gate"].read()[0], state[f"{text}.weight"][:24])
    assert torch.equal(layers[f"{audio}.gate"].read()[0], state[f"{audio}.weight"][24:])


def test_a_stack_of_gated_layers_is_cut_one_by_one(tmp_path: Path) -> None:
    fused, down = torch.randn(3, 48, 40), torch.randn(3, 40, 24)
    name = "depth_decoder.layers.0.mlp.fc1"
    state = {f"{name}.weight": fused, "depth_decoder.layers.0.mlp.fc2.weight": down}
    layers = layers_of(folder(tmp_path, state, {"model_type": "moshi"}))
    assert torch.equal(layers[f"{name}[2].gate"].read()[0], fused[2, :24])
    assert torch.equal(layers[f"{name}[2].up"].read()[0], fused[2, 24:])


MIXTURES = {
    "mixtral": (
        build("MixtralConfig", "MixtralForCausalLM", **FEW_LAYERS, num_local_experts=3),
        "mlp.experts.",
    ),
    "granitemoe": (
        build(
            "GraniteMoeConfig",
            "GraniteMoeForCausalLM",
            **FEW_LAYERS,
            num_local_experts=3,
            num_experts_per_tok=2,
        ),
        "block_sparse_moe.experts.",
    ),
    "llama4": (
        build(
            "Llama4TextConfig", "Llama4ForCausalLM", **FEW_LAYERS, num_local_experts=3, head_dim=8
        ),
        "feed_forward.experts.",
    ),
    "aria": (
        build(
            "AriaTextConfig",
            "AriaTextForCausalLM",
            **FEW_LAYERS,
            moe_num_experts=3,
            moe_topk=2,
            pad_token_id=0,
        ),
        "mlp.experts.",
    ),
    "gpt_oss": (
        build(
            "GptOssConfig",
            "GptOssForCausalLM",
            **FEW_LAYERS,
            num_local_experts=3,
            head_dim=8,
            pad_token_id=0,
        ),
        "mlp.experts.",
    ),
    "openai_privacy_filter": (
        build(
            "OpenAIPrivacyFilterConfig",
            "OpenAIPrivacyFilterForTokenClassification",
            **FEW_LAYERS,
            num_local_experts=3,
            head_dim=8,
            pad_token_id=0,
            eos_token_id=1,
        ),
        "mlp.experts.",
    ),
}
INWARD, ALTERNATING = {"llama4", "aria", "openai_privacy_filter", "gpt_oss"}, {"gpt_oss"}


@pytest.mark.parametrize("case", MIXTURES)
def test_stacked_experts_live_and_from_a_file(case: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    make, path = MIXTURES[case]
    model: Any = make()
    state = model.state_dict()
    name = next(key for key in state if key.endswith(f"{path}gate_up_proj"))
    up = [w.T if case in INWARD else w for w in state[name]]
    down = [w.T if case in INWARD else w for w in state[name.replace("gate_up_proj", "down_proj")]]
    for source in (
        model,
        folder(tmp_path, state, json.loads(model.config.to_json_string(use_diff=False))),
    ):
        layers = layers_of(source)
        for i in range(len(up)):
            expected = (in_turn if case in ALTERNATING else upper)(up[i])
            assert torch.equal(layers[f"{name}[{i}].gate"].read()[0], expected["gate"])
            assert torch.equal(layers[f"{name}[{i}].up"].read()[0], expected["up"])
            assert torch.equal(layers[f"{name.replace('gate_up', 'down')}[{i}]"].read()[0], down[i])


def test_dbrx_stacks_experts_in_two_dimensions(tmp_path: Path) -> None:
    prefix = "transformer.blocks.0.ffn.experts.mlp."
    state = {f"{prefix}{name}": torch.randn(3 * 24, 16) for name in ("w1", "v1", "w2")}
    config = {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 3}}
    router = {"transformer.blocks.0.ffn.router.layer.weight": torch.randn(3, 16)}
    (tmp_path / "router").mkdir()
    told = [folder(tmp_path, state, config), folder(tmp_path / "router", state | router, {})]
    for source in told:
        layers = layers_of(source)
        for name, kind in (("w1", "gate"), ("v1", "up")):
            layer = layers[f"{prefix}{name}[2]"]
            assert (layer.kind, layer.rows, layer.cols) == (kind, 24, 16)
            assert torch.equal(layer.read()[0], state[f"{prefix}{name}"][48:])
        assert layers[f"{prefix}w2[1]"].kind == "down"
        assert torch.equal(layers[f"{prefix}w2[1]"].read()[0], state[f"{prefix}w2"][24:48].T)
    whole = layers_of(state)[f"{prefix}w1"]
    assert "no configuration tells how many" in whole.note
    assert whole.rows == 72


def test_experts_of_attention_heads_are_no_gates() -> None:
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 40}
    model = build(
        "JetMoeConfig",
        "JetMoeForCausalLM",
        **sizes,
        num_key_value_heads=2,
        kv_channels=8,
        intermediate_size=24,
        num_local_experts=3,
        num_experts_per_tok=2,
    )()
    for source in (model, model.state_dict()):
        layers = layers_of(source)
        kinds = {
            name.rpartition("experts.")[2]: x.kind
            for name, x in layers.items()
            if "self_attention.experts" in name
        }
        assert kinds["input_linear[2]"] == "q"
        assert kinds["output_linear[0]"] == "o"
        assert layers["model.layers.0.mlp.input_linear[1].gate"].kind == "gate"
        assert layers["model.layers.0.mlp.output_linear[1]"].kind == "down"


def test_experts_of_an_unnamed_gguf_architecture() -> None:
    state = {
        "blk.0.ffn_up_exps.weight": torch.randn(8, 6, 5),
        "blk.0.ffn_gate_up_exps.weight": torch.randn(8, 6, 5),
    }
    layers = layers_of(state)
    assert layers["blk.0.ffn_up_exps[7]"].kind == "up"
    gate = layers["blk.0.ffn_gate_up_exps[7].gate"].read()[0]
    assert torch.equal(gate, state["blk.0.ffn_gate_up_exps.weight"][7, :3])


@pytest.mark.parametrize("outer", ["mlp", "block_sparse_moe"])
def test_experts_of_mlx_are_no_convolutions(outer: str) -> None:
    """mlx-lm stacks (experts, out, in) in a module switch_mlp, and pairs with transformers'
    names."""
    prefix = f"model.layers.0.{outer}.switch_mlp."
    state = {
        f"{prefix}{name}.weight": torch.randn(4, *shape)
        for name, shape in {"gate_proj": (9, 7), "up_proj": (9, 7), "down_proj": (7, 9)}.items()
    }
    layers = {layer.name: layer for layer in open_source(state).layers}
    assert list(layers) == [f"{n.removesuffix('.weight')}[{i}]" for n in state for i in range(4)]
    for name, values in state.items():
        for i in range(4):
            layer = layers[f"{name.removesuffix('.weight')}[{i}]"]
            assert torch.equal(layer.read()[0], values[i])
            assert layer.kind == name.split(".")[-2].removesuffix("_proj")


def test_a_stack_whose_order_only_custom_tells_says_so() -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    alone = layers_of({name: torch.randn(3, 64, 96)})
    assert "no configuration and no output projection" in alone[f"{name}[0].gate"].note
    both = layers_of(
        {name: torch.randn(3, 128, 96), name.replace("gate_up", "down"): torch.randn(3, 96, 64)}
    )
    assert both[f"{name}[0].gate"].note == ""
