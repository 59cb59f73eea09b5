"""Families with fused attention: how each is built small, and what its forward pass
takes out of the fused weight.

Every oracle is the forward pass's own view and split, written again for a
weight whose rows are the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Parts = dict[str, Tensor]
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 40,
}
FEW_LAYERS: dict[str, Any] = SIZES | {"intermediate_size": 48}


@dataclass(frozen=True)
class Fused:
    """One family."""

    build: Callable[[], nn.Module]
    weight: str
    """A fused weight of the model."""
    oracle: Callable[[Tensor], Parts]
    output: str = ""
    """The module that takes the heads' output, for families whose values reach it unchanged."""


def build(config: str, model: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        torch.manual_seed(0)
        made = getattr(transformers, model)(getattr(transformers, config)(**settings))
        result: nn.Module = made.eval()
        return result

    return make


def blocks(*sizes: int) -> Callable[[Tensor], Parts]:
    return lambda weight: dict(zip("qkv", weight.split(list(sizes)), strict=True))


def per_head(heads: int) -> Callable[[Tensor], Parts]:
    """``view(..., heads, 3, head_dim)``, then [..., 0, :], [..., 1, :], [..., 2, :]."""

    def cut(weight: Tensor) -> Parts:
        view = weight.view(heads, 3, -1, weight.shape[1])
        return {kind: view[:, i].reshape(-1, weight.shape[1]) for i, kind in enumerate("qkv")}

    return cut


def per_group(groups: int, shared: int) -> Callable[[Tensor], Parts]:
    """``view(..., groups, shared + 2, head_dim)``, then [:-2], [-2], [-1]."""

    def cut(weight: Tensor) -> Parts:
        view = weight.view(groups, shared + 2, -1, weight.shape[1])
        pieces = {"q": view[:, :-2], "k": view[:, -2], "v": view[:, -1]}
        return {kind: piece.reshape(-1, weight.shape[1]) for kind, piece in pieces.items()}

    return cut


def codegen(weight: Tensor) -> Parts:
    """``reshape(..., 4, -1)``, then ``split(local_dim)`` into query, value, key."""
    query, value, key = weight.reshape(4, -1, weight.shape[1]).split(weight.shape[0] // 12, dim=1)
    return {
        k: piece.reshape(-1, weight.shape[1])
        for k, piece in (("q", query), ("v", value), ("k", key))
    }


def gpt2(weight: Tensor) -> Parts:
    """Conv1D: the outputs are columns, split into three."""
    return dict(
        zip("qkv", (piece.T for piece in weight.split(weight.shape[1] // 3, dim=1)), strict=True)
    )


def qwen3_next(weight: Tensor) -> Parts:
    """Two key heads of 8, four value heads of 4: ``view(2, 8 + 8 + 2 * 4 + 2 * 4)``, then split."""
    pieces = weight.view(2, -1, weight.shape[1]).split([8, 8, 8, 8], dim=1)
    return {
        kind: piece.reshape(-1, weight.shape[1]) for kind, piece in zip("qkvz", pieces, strict=True)
    }


LINEAR_HEADS: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 4,
}
FALCON: dict[str, Any] = {
    "config": "FalconConfig",
    "model": "FalconForCausalLM",
    "alibi": False,
    "bias": False,
    **SIZES,
}
FALCON_WEIGHT = "transformer.h.1.self_attention.query_key_value.weight"
FALCON_OUTPUT = "transformer.h.1.self_attention.dense"
BIGCODE: dict[str, Any] = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 40,
    "n_positions": 16,
}
BIGCODE_WEIGHT, BIGCODE_OUTPUT = "transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.c_proj"
VISION: dict[str, Any] = {
    "depth": 2,
    "embed_dim": 32,
    "num_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
}

FAMILIES: dict[str, Fused] = {
    "bloom": Fused(
        build(
            "BloomConfig", "BloomForCausalLM", hidden_size=32, n_layer=2, n_head=4, vocab_size=40
        ),
        "transformer.h.1.self_attention.query_key_value.weight",
        per_head(4),
        "transformer.h.1.self_attention.dense",
    ),
    "gpt_neox": Fused(
        build("GPTNeoXConfig", "GPTNeoXForCausalLM", **FEW_LAYERS),
        "gpt_neox.layers.1.attention.query_key_value.weight",
        per_head(4),
        "gpt_neox.layers.1.attention.dense",
    ),
    "gpt_neox_japanese": Fused(
        build("GPTNeoXJapaneseConfig", "GPTNeoXJapaneseForCausalLM", **SIZES),
        "gpt_neox_japanese.layers.1.attention.query_key_value.weight",
        per_head(4),
        "gpt_neox_japanese.layers.1.attention.dense",
    ),
    "persimmon": Fused(
        build("PersimmonConfig", "PersimmonForCausalLM", **FEW_LAYERS),
        "model.layers.1.self_attn.query_key_value.weight",
        per_head(4),
        "model.layers.1.self_attn.dense",
    ),
    "falcon 40B": Fused(
        build(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
        FALCON_WEIGHT,
        per_group(2, 2),
        FALCON_OUTPUT,
    ),
    "falcon 7B": Fused(
        build(**FALCON, multi_query=True), FALCON_WEIGHT, blocks(32, 8, 8), FALCON_OUTPUT
    ),
    "falcon 1B": Fused(
        build(**FALCON, multi_query=False), FALCON_WEIGHT, per_head(4), FALCON_OUTPUT
    ),
    "gpt_bigcode": Fused(
        build("GPTBigCodeConfig", "GPTBigCodeForCausalLM", **BIGCODE),
        BIGCODE_WEIGHT,
        blocks(32, 8, 8),
        BIGCODE_OUTPUT,
    ),
    "gpt_bigcode, all heads": Fused(
        build("GPTBigCodeConfig", "GPTBigCodeForCausalLM", **BIGCODE, multi_query=False),
        BIGCODE_WEIGHT,
        per_head(4),
        BIGCODE_OUTPUT,
    ),
    "mpt": Fused(
        build("MptConfig", "MptForCausalLM", d_model=32, n_heads=4, n_layers=2, vocab_size=40),
        "transformer.blocks.1.attn.Wqkv.weight",
        blocks(32, 32, 32),
        "transformer.blocks.1.attn.out_proj",
    ),
    "dbrx": Fused(
        build(
            "DbrxConfig",
            "DbrxForCausalLM",
            d_model=32,
            n_heads=4,
            n_layers=2,
            vocab_size=40,
            attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
            ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        ),
        "transformer.blocks.1.norm_attn_norm.attn.Wqkv.weight",
        blocks(32, 16, 16),
        "transformer.blocks.1.norm_attn_norm.attn.out_proj",
    ),
    "phi3": Fused(
        build("Phi3Config", "Phi3ForCausalLM", **FEW_LAYERS, num_key_value_heads=2, pad_token_id=0),
        "model.layers.1.self_attn.qkv_proj.weight",
        blocks(32, 16, 16),
        "model.layers.1.self_attn.o_proj",
    ),
    "phi3, wide heads": Fused(
        build(
            "Phi3Config",
            "Phi3ForCausalLM",
            **FEW_LAYERS,
            num_key_value_heads=2,
            head_dim=12,
            pad_token_id=0,
        ),
        "model.layers.1.self_attn.qkv_proj.weight",
        blocks(48, 24, 24),
        "model.layers.1.self_attn.o_proj",
    ),
    "codegen": Fused(
        build(
            "CodeGenConfig",
            "CodeGenForCausalLM",
            n_embd=32,
            n_head=4,
            n_layer=2,
            vocab_size=40,
            rotary_dim=4,
        ),
        "transformer.h.1.attn.qkv_proj.weight",
        codegen,
        "transformer.h.1.attn.out_proj",
    ),
    "modernbert": Fused(
        build("ModernBertConfig", "ModernBertModel", **FEW_LAYERS, pad_token_id=0),
        "layers.1.attn.Wqkv.weight",
        blocks(32, 32, 32),
        "layers.1.attn.Wo",
    ),
    "deberta": Fused(
        build("DebertaConfig", "DebertaModel", **FEW_LAYERS),
        "encoder.layer.1.attention.self.in_proj.weight",
        per_head(4),
        "encoder.layer.1.attention.output.dense",
    ),
    "minimax": Fused(
        build(
            "MiniMaxConfig",
            "MiniMaxForCausalLM",
            **FEW_LAYERS,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=2,
            layer_types=["linear_attention", "full_attention"],
        ),
        "model.layers.0.self_attn.qkv_proj.weight",
        per_head(4),
    ),
    "gpt2": Fused(
        build(
            "GPT2Config",
            "GPT2LMHeadModel",
            n_embd=32,
            n_head=4,
            n_layer=2,
            vocab_size=40,
            n_positions=16,
        ),
        "transformer.h.1.attn.c_attn.weight",
        gpt2,
        "transformer.h.1.attn.c_proj",
    ),
    "openai-gpt": Fused(
        build(
            "OpenAIGPTConfig", "OpenAIGPTLMHeadModel", n_embd=32, n_head=4, n_layer=2, vocab_size=40
        ),
        "transformer.h.1.attn.c_attn.weight",
        gpt2,
        "transformer.h.1.attn.c_proj",
    ),
    "qwen3_next": Fused(
        build(
            "Qwen3NextConfig",
            "Qwen3NextForCausalLM",
            **FEW_LAYERS,
            **LINEAR_HEADS,
            num_key_value_heads=2,
            layer_types=["linear_attention", "full_attention"],
            num_experts=2,
            num_experts_per_tok=1,
        ),
        "model.layers.0.linear_attn.in_proj_qkvz.weight",
        qwen3_next,
    ),
    "qwen3_5": Fused(
        build(
            "Qwen3_5TextConfig",
            "Qwen3_5ForCausalLM",
            **FEW_LAYERS,
            **LINEAR_HEADS,
            num_key_value_heads=2,
            layer_types=["linear_attention", "full_attention"],
        ),
        "model.layers.0.linear_attn.in_proj_qkv.weight",
        blocks(16, 16, 16),
    ),
    "qwen2_vl, vision": Fused(
        build(
            "Qwen2VLConfig",
            "Qwen2VLForConditionalGeneration",
            text_config=FEW_LAYERS | {"num_key_value_heads": 2},
            vision_config=VISION,
        ),
        "model.visual.blocks.1.attn.qkv.weight",
        blocks(32, 32, 32),
    ),
    "exaone4_5, vision": Fused(
        build(
            "Exaone4_5_VisionConfig",
            "Exaone4_5_VisionModel",
            **VISION | {"num_heads": 4, "num_key_value_heads": 2},
        ),
        "blocks.1.attn.qkv.weight",
        blocks(32, 16, 16),
    ),
    "jetmoe": Fused(
        build(
            "JetMoeConfig",
            "JetMoeForCausalLM",
            **SIZES | {"num_attention_heads": 4},
            num_key_value_heads=2,
            kv_channels=8,
            intermediate_size=24,
            num_local_experts=2,
            num_experts_per_tok=2,
        ),
        "model.layers.1.self_attention.kv_proj.weight",
        lambda weight: dict(zip("kv", weight.chunk(2), strict=True)),
    ),
}
