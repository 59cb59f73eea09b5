"""Small models and files that many tests measure."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file


def weights(seed: int = 0, blocks: int = 3) -> dict[str, torch.Tensor]:
    """A toy transformer's state dict: a few shapes, one layer that is too small, one vector."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_t(4, shape).astype(np.float32))

    state = {"model.embed_tokens.weight": draw(300, 96), "model.norm.weight": draw(96)}
    for block in range(blocks):
        prefix = f"model.layers.{block}."
        state |= {
            prefix + "self_attn.q_proj.weight": draw(96, 96),
            prefix + "self_attn.k_proj.weight": draw(64, 96),
            prefix + "mlp.up_proj.weight": draw(192, 96),
            prefix + "mlp.gate.weight": draw(4, 96),
        }
    return state


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A safetensors file with the toy transformer."""
    path = tmp_path / "toy.safetensors"
    save_file(weights(), path)
    return path
