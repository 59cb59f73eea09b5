"""WeightWatcher's turn in ``agreement``, run by its own Python: one model, its table as JSON.

``python weightwatcher_table.py PATH`` opens a folder with a GGUF file or a transformers model, or
a state dict. Of a state dict it builds a module that holds the same convolutions and linear layers.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from importlib import metadata
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import weightwatcher
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GgufConfig


def open_model(path: Path) -> nn.Module:
    """Open the model as a live module."""
    if path.suffix == ".gguf":
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
    elif path.is_dir():
        model = AutoModel.from_pretrained(path)
    else:
        model = of_state(torch.load(path, map_location="cpu", weights_only=True))
    return model


def of_state(state: dict[str, torch.Tensor]) -> nn.Module:
    """Build a module with the names and weights of a state dict: convolutions, linear layers."""
    root = nn.Module()
    for name, weight in state.items():
        path, _, attribute = name.rpartition(".")
        if attribute != "weight" or weight.ndim not in (2, 4):
            continue
        owner = root
        *outer, last = path.split(".")
        for part in outer:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        layer = (
            nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=False)  # type: ignore[arg-type]
            if weight.ndim == 4
            else nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        )
        layer.weight = nn.Parameter(weight.float(), requires_grad=False)
        owner.add_module(last, layer)
    return root


def main(path: str, out: str) -> None:
    """Analyze, and write one row per layer, with the name of the layer in the model."""
    logging.disable(logging.WARNING)
    details = weightwatcher.WeightWatcher(model=open_model(Path(path))).analyze()
    # longname is the full name of the module.
    rows = details.astype(object).where(details.notna(), None).to_dict("records")
    versions = {
        name: metadata.version(name) for name in ("weightwatcher", "torch", "numpy", "scipy")
    }
    Path(out).write_text(json.dumps({"rows": rows, "versions": versions}, default=float))


if __name__ == "__main__":
    main(*sys.argv[1:])
