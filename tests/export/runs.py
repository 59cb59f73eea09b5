"""What tests that run a real tool share: a small Llama of whole blocks, on disk and in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.language import llama, tokenizer, words


def wide_llama() -> Any:
    """A small Llama in bfloat16 whose rows are whole groups of every format."""
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 512}
    return llama(hidden=256, **sizes).to(torch.bfloat16)


def saved(folder: Path) -> Path:
    """The model and its tokenizer in a folder."""
    wide_llama().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def rows(count: int = 16) -> list[list[int]]:
    """Token ids to calibrate with."""
    return [tokenizer()(words(32, seed))["input_ids"] for seed in range(count)]


def logits(model: Any) -> torch.Tensor:
    """What a model says about sixteen words."""
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(16)[None]).logits.float()
    return found


def change(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative difference of two tensors."""
    return float((found - wanted).norm() / wanted.norm())
