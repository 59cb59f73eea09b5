"""Small models, one for each layout: every way of storing one must give the same layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune


class Fourier(nn.Module):
    """A layer with complex weights, as neuraloperator's SpectralConv."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5, 4, 2, dtype=torch.complex64))


class RealViewFourier(nn.Module):
    """The same stored as pairs of real numbers, as tensorly's dense complex tensors are."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Module()
        self.weight.tensor = nn.Parameter(torch.randn(3, 5, 4, 2, 2))


class Transformer(nn.Module):
    """Fused projections under usual names, and parameters that are not called weight."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 8))
        self.mixers = nn.Module()
        self.mixers.w1 = nn.Parameter(torch.randn(2, 40, 48))
        self.blocks = nn.ModuleList([nn.Module() for _ in range(11)])
        for block in self.blocks:
            block.attn = nn.Module()
            block.attn.qkv = nn.Linear(8, 24)
            block.attn.proj = nn.Linear(8, 8)
            block.mlp = nn.Module()
            block.mlp.gate_up_proj = nn.Linear(8, 32, bias=False)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)


class Tied(nn.Module):
    """An output layer that shares the embedding's storage."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(12, 8)
        self.lm_head = nn.Linear(8, 12, bias=False)
        self.lm_head.weight = self.embed_tokens.weight


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, groups=2),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.ConvTranspose2d(6, 4, (2, 3)),
        nn.Conv1d(4, 8, 5),
        nn.Conv3d(4, 2, 2),
        nn.Flatten(),
    )


def normed() -> nn.Module:
    norm = nn.utils.parametrizations
    model = nn.ModuleDict(
        {
            "new": norm.weight_norm(nn.Linear(5, 7)),
            "conv": norm.weight_norm(nn.Conv1d(4, 6, 3), dim=2),
            "whole": norm.weight_norm(nn.Linear(5, 7), dim=None),  # type: ignore[arg-type]
            "spectral": norm.spectral_norm(nn.Linear(5, 7)),
            "pruned": nn.Linear(6, 8),
        }
    )
    prune.random_unstructured(model["pruned"], "weight", 0.5)
    # Away from the initial value, where g is the norm of v and the two are one.
    new: Any = model["new"]
    new.parametrizations.weight.original0.data *= torch.rand(7, 1)
    return model


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=20, n_positions=9, n_embd=8, n_layer=2, n_head=2, add_cross_attention=True
    )
    return GPT2LMHeadModel(config)


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=20, num_key_value_heads=1, num_local_experts=3, **sizes)
    )


def qwen3_moe() -> nn.Module:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 4,
    }
    config = Qwen3MoeConfig(
        vocab_size=20, num_key_value_heads=1, num_experts=3, moe_intermediate_size=6, **sizes
    )
    return Qwen3MoeForCausalLM(config)


def gpt_oss() -> nn.Module:
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 4,
    }
    return GptOssForCausalLM(
        GptOssConfig(vocab_size=20, num_key_value_heads=1, num_local_experts=3, **sizes)
    )


def phi3() -> nn.Module:
    from transformers import Phi3Config, Phi3ForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    return Phi3ForCausalLM(
        Phi3Config(vocab_size=20, num_key_value_heads=2, pad_token_id=0, **sizes)
    )


def gpt_neox() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=20, **sizes))


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3, bias=False)),
    "one layer": lambda: nn.Linear(4, 6),
    "double": lambda: nn.Linear(4, 6).double(),
    "half": lambda: nn.Linear(4, 6).half(),
    "bfloat16": lambda: nn.Linear(4, 6).bfloat16(),
    "convolutions": convolutions,
    "embeddings": lambda: nn.ModuleDict(
        {"wte": nn.Embedding(9, 4), "embed_bag": nn.EmbeddingBag(6, 5)}
    ),
    "lstm": lambda: nn.LSTM(3, 5, num_layers=2, bidirectional=True),
    "lstm projected": lambda: nn.LSTM(3, 6, proj_size=2),
    "lstm square": lambda: nn.LSTM(6, 6),
    "gru": lambda: nn.GRU(4, 5),
    "rnn": lambda: nn.RNN(4, 5),
    "lstm cell": lambda: nn.LSTMCell(3, 5),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "attention of other widths": lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
    "transformer": Transformer,
    "fourier": Fourier,
    "real view fourier": RealViewFourier,
    "normed": normed,
    "tied": Tied,
}
"""Models whose layers are the same live and in any file."""

TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": gpt2,
    "mixtral": mixtral,
    "qwen3 moe": qwen3_moe,
    "gpt-oss": gpt_oss,
    "phi3": phi3,
    "gpt-neox": gpt_neox,
}
"""Models that transformers saves; names of experts may differ, canonical names may not."""
