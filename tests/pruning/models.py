"""Tiny decoders of every architecture that pruning is made for, from
configurations, and a tokenizer for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

_COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2}
_EXPERTS = {
    **_GROUPED,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "head_dim": 8,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "smollm2": ("LlamaConfig", {**_GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 8}),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 8}),
    "gemma3": ("Gemma3TextConfig", {**_GROUPED, "head_dim": 8, "sliding_window": 8,
                                    "layer_types": ["sliding_attention", "full_attention"]}),
    "phi3": ("Phi3Config", _GROUPED),
    "opt": ("OPTConfig", {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
                            "vocab_size": 100,
                            "bos_token_id": 1, "eos_token_id": 2}),
    "neox": ("GPTNeoXConfig", {**_COMMON, "intermediate_size": 48}),
    "mixtral": ("MixtralConfig", {**_GROUPED, "num_local_experts": 4}),
    "qwen3-moe": ("Qwen3MoeConfig", _EXPERTS),
    "qwen2-moe": ("Qwen2MoeConfig", {**_EXPERTS, "shared_expert_intermediate_size": 40}),
}  # fmt: skip
"""Name -> class of the configuration, its arguments."""


def decoder(name: str, seed: int = 0, **more: Any) -> Any:
    """A model with drawn weights; skips where transformers lacks the architecture."""
    transformers = pytest.importorskip("transformers")
    kind, arguments = CONFIGS[name]
    if not hasattr(transformers, kind):
        pytest.skip(f"this transformers has no {kind}")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, kind)(**{**arguments, **more})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model.eval()


def tokens(samples: int = 5, length: int = 24, seed: int = 1) -> torch.Tensor:
    """Token ids that every one of these models knows."""
    return torch.randint(3, 100, (samples, length), generator=torch.Generator().manual_seed(seed))
