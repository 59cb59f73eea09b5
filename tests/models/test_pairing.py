"""Layers of two sources pair by name: the forms that pair, and those that must not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from spectail.models.naming.names import canonical_name
from spectail.models.naming.pairing import pair_names
from spectail.models.open import open_source

PAIRS = {
    "base model of BERT": (
        "encoder.layer.0.attention.self.query",
        "bert.encoder.layer.0.attention.self.query",
    ),
    "base model of GPT-2": ("h.0.attn.c_attn.q", "transformer.h.0.attn.c_attn.q"),
    "base model of OPT": ("decoder.layers.0.fc1", "model.decoder.layers.0.fc1"),
    "text part first": (
        "language_model.model.layers.0.mlp.up_proj",
        "model.language_model.layers.0.mlp.up_proj",
    ),
    "text part not named": (
        "model.layers.0.mlp.up_proj",
        "model.language_model.layers.0.mlp.up_proj",
    ),
    "head of the text part": ("language_model.lm_head", "lm_head"),
    "vision tower": ("visual.blocks.0.attn.qkv", "model.visual.blocks.0.attn.qkv"),
    "head of GPT-NeoX": ("embed_out", "lm_head"),
    "experts": (
        "model.layers.0.block_sparse_moe.experts.3.w1",
        "model.layers.0.mlp.experts.gate_up_proj[3].gate",
    ),
    "whole prefix": ("layers.0.mlp.fc1", "vision_tower.vision_model.encoder.layers.0.mlp.fc1"),
}


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("turned", [False, True])
def test_forms_of_one_name(case: str, turned: bool) -> None:
    left, right = PAIRS[case][::-1] if turned else PAIRS[case]
    found = pair_names([left, "left.alone"], ["right.alone.too", right])
    assert (found.pairs, found.left_only, found.right_only) == (
        {left: right},
        ("left.alone",),
        ("right.alone.too",),
    )


APART = {
    "another block": ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"),
    "a head and a layer in a block": ("fc", "blocks.0.fc"),
    "another kind": ("model.layers.61.shared_head.head", "model.lm_head"),
    "part of a word": ("my_layers.0.fc1", "layers.0.fc1"),
}


@pytest.mark.parametrize("case", APART)
def test_other_layers_do_not_pair(case: str) -> None:
    left, right = APART[case]
    assert pair_names([left], [right]).pairs == {}


def test_two_possible_partners_are_none() -> None:
    found = pair_names(
        ["encoder.layer.0.output.dense"],
        ["text.encoder.layer.0.output.dense", "image.encoder.layer.0.output.dense"],
    )
    assert not found.pairs
    assert found.ambiguous == {
        "encoder.layer.0.output.dense": (
            "image.encoder.layer.0.output.dense",
            "text.encoder.layer.0.output.dense",
        )
    }


def test_the_strictest_form_wins_and_each_layer_has_one_partner() -> None:
    left = ["model.layers.0.fc", "layers.0.fc"]
    assert pair_names(left, left[::-1]).pairs == {name: name for name in left}
    assert pair_names(left, ["layers.0.fc"]).left_only == ("model.layers.0.fc",)


def test_names_in_the_saved_file_pair_even_where_they_swap() -> None:
    live = ["decoder.layers.0.fc", "encoder.layers.0.fc"]
    saved = {
        "decoder.layers.0.fc": "model.layers.0.fc",
        "encoder.layers.0.fc": "decoder.layers.0.fc",
    }
    file = ["decoder.layers.0.fc", "model.layers.0.fc"]
    assert pair_names(file, live, right_saved=saved).pairs == {
        "decoder.layers.0.fc": "encoder.layers.0.fc",
        "model.layers.0.fc": "decoder.layers.0.fc",
    }
    assert pair_names(live, file, left_saved=saved).pairs == {
        "decoder.layers.0.fc": "model.layers.0.fc",
        "encoder.layers.0.fc": "decoder.layers.0.fc",
    }


def test_pairing_needs_no_torch() -> None:
    code = (
        "import sys, spectail.models.naming.pairing, spectail.models.naming.not_weights; "
        "print('torch' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **sizes))


def llava() -> Any:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = LlamaConfig(vocab_size=32, **sizes)
    vision = CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=16, **sizes)
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=vision, image_token_index=31)
    )


def qwen2_moe() -> Any:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = Qwen2MoeConfig(
        vocab_size=32, num_experts=3, moe_intermediate_size=12, num_key_value_heads=1, **sizes
    )
    return Qwen2MoeForCausalLM(config)


def ernie_vl() -> Any:
    from transformers import Ernie4_5_VLMoeConfig, Ernie4_5_VLMoeForConditionalGeneration

    text: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text |= {
        "num_key_value_heads": 1,
        "moe_num_experts": 3,
        "moe_intermediate_size": [12, 8],
        "vocab_size": 32,
    }
    text |= {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    }
    vision = {"hidden_size": 16, "intermediate_size": 24, "depth": 2, "num_heads": 2}
    config = Ernie4_5_VLMoeConfig(text_config=text, vision_config=vision)
    return Ernie4_5_VLMoeForConditionalGeneration(config)


SAVED = {"vit": vit, "llava": llava, "qwen2 moe": qwen2_moe, "ernie vl": ernie_vl}


@pytest.mark.parametrize("case", SAVED)
def test_a_live_model_pairs_with_its_saved_file_by_value(case: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = SAVED[case]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    live = {layer.name: layer for layer in open_source(model).layers if not layer.no_weight}
    saved = {layer.name: layer for layer in open_source(tmp_path).layers if not layer.no_weight}
    aliases = {name: layer.saved_as for name, layer in live.items() if layer.saved_as}
    assert all(canonical_name(name) != canonical_name(other) for name, other in aliases.items())
    found = pair_names(list(saved), list(live), right_saved=aliases)
    assert not found.left_only
    assert not found.right_only
    for name, partner in found.pairs.items():
        one, two = saved[name].read(), live[partner].read()
        # Ernie's file keeps routers as (in, out).
        assert torch.equal(one, two) or torch.equal(one, two.mT), (name, partner)
