"""Small models and files that many tests measure, and the browser that looks at pages."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's chromium under Playwright; skips with a reason where either is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = [shutil.which(x) for x in ("chromium", "chromium-browser", "google-chrome")]
    path = next((x for x in found if x), None)
    if path is None:
        pytest.skip("no chromium or chrome on the PATH")
    quiet = [
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", *quiet]
        )
        yield chromium
        chromium.close()
