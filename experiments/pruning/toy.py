"""A tiny model and texts of bytes, to see whether the experiment runs."""

from __future__ import annotations

import random
from typing import Any

import torch

from experiments.pruning.texts import Texts


class Letters:
    """A tokenizer whose tokens are bytes."""

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
        """Token ids of a text."""
        return {"input_ids": list(text.encode())}


def toy() -> tuple[Any, Letters, Texts]:
    """A Llama of four small blocks with drawn weights, and drawn words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    for i, block in enumerate(model.model.layers):
        for parameter in block.parameters():
            if parameter.ndim > 1:
                parameter.data *= (0.2 * (i + 1) * torch.randn(parameter.shape[0], 1)).exp()
    calibration, selection, one, two = (_words(seed) for seed in range(4))
    return model, Letters(), Texts(calibration, selection, {"one": one, "two": two})


def _words(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("etaoin shrdlu", k=rng.randint(2, 7))) for _ in range(400))
