"""The difference of two models: what fine-tuning changed, as layers that can be measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from spectail.basics.texts import first_names
from spectail.errors import SourceError, SpecError
from spectail.models.lazy_tensor import as_float
from spectail.models.source import Layer, Source

UNCHANGED = "the same weights as in the base: nothing was trained here"
ADAPTER = ".lora"
"""The end of the name of a low-rank change; before it stands the name of the layer it changes."""


class UnchangedError(SpecError):
    """Both models have the same weights in a layer, so there is nothing to measure."""


@dataclass(frozen=True)
class Change(Layer):
    """A layer whose weights are those of a tuned model minus those of its base."""

    base: Layer | None = field(default=None, repr=False, compare=False)
    """The same layer of the base model."""
    added: bool = False
    """Whether the layer is a low-rank adapter, whose weights are a change already."""

    def read(self) -> Tensor:
        """Read the difference as (n_matrices, rows, cols).

        Raises:
            UnchangedError: Both models have the same weights here.
            SourceError: One of the two cannot be read.

        """
        return self.read_change()[0]

    def read_change(self) -> tuple[Tensor, float]:
        """Read the difference, and the sum of squares of the base's weights."""
        assert self.base is not None
        before = self.base.read()
        change = super().read()
        if not self.added:
            # One of the two may be a module on a GPU, the other a file.
            change = change - before.to(change.device)
        if not change.any():
            raise UnchangedError(UNCHANGED)
        return change, float(torch.linalg.vector_norm(before)) ** 2

    @property
    def band_axis(self) -> int | None:
        """Along which side bands of both models' matrices can be read; None if they differ."""
        axis = super().band_axis
        assert self.base is not None
        return axis if axis == self.base.band_axis else None

    def read_band(self, start: int, stop: int) -> Tensor:
        """Read a band of the difference, (1, rows, cols)."""
        band = super().read_band(start, stop)
        if self.added:
            return band
        assert self.base is not None
        before = self.base.read_band(start, stop)
        return as_float(band) - as_float(before).to(band.device)


def difference(tuned: Source, base: Source) -> Source:
    """Return the layers of ``tuned`` with the weights of ``base`` taken away, paired by name.

    A layer of ``tuned`` that has no counterpart of the same shape is skipped, and its row says why.
    A low-rank adapter (``<layer>.lora``) is a change of the layer ``<layer>`` already: its weights
    stay as they are. What only ``base`` has is named in a note.

    Raises:
        SourceError: The models have no layer in common.

    """
    of_base = {layer.name: layer for layer in base.layers}
    layers = tuple(_change(layer, of_base) for layer in tuned.layers)
    if not any(isinstance(layer, Change) for layer in layers):
        raise SourceError(
            f"{tuned.label} and {base.label} have no layer of the same name and shape: "
            f"{first_names([layer.name for layer in tuned.layers])} in the first, "
            f"{first_names(list(of_base))} in the second; a base is the model that was fine-tuned"
        )
    known = {layer.name.removesuffix(ADAPTER) for layer in tuned.layers}
    missing = [name for name in of_base if name not in known]
    adapter = any(isinstance(layer, Change) and layer.added for layer in layers)
    notes = [f"Weights are those of {tuned.label} minus those of {base.label}."]
    if missing and not adapter:  # an adapter changes the layers that it was made for
        notes.append(f"Only the base has {first_names(missing)}.")
    both = f"{tuned.fingerprint} minus {base.fingerprint}"
    return replace(
        tuned,
        label=f"{tuned.label} minus {base.label}",
        fingerprint=hashlib.sha256(both.encode()).hexdigest(),
        layers=layers,
        notes=(*notes, *tuned.notes),
        tied=(),
        files=(*tuned.files, *base.files),
    )


def _change(layer: Layer, of_base: Mapping[str, Layer]) -> Layer:
    """Return a layer minus its counterpart in the base."""
    if layer.no_weight:
        return layer
    added = layer.kind == "lora" and layer.name.endswith(ADAPTER)
    before = of_base.get(layer.name.removesuffix(ADAPTER) if added else layer.name)
    if before is None:
        return replace(layer, no_weight="the base has no layer of this name")
    if problem := layer.problem or before.problem:
        return replace(layer, problem=problem)
    here, there = ((x.n_matrices, x.rows, x.cols) for x in (layer, before))
    if here != there:
        shapes = f"{_spelled(here)} here and {_spelled(there)} in the base"
        return replace(layer, no_weight=f"{shapes}: their difference is not defined")
    return Change(
        **{f.name: getattr(layer, f.name) for f in fields(Layer)}, base=before, added=added
    )


def _spelled(shape: tuple[int, int, int]) -> str:
    """Spell the shape of a layer's matrices."""
    count, rows, cols = shape
    return f"{rows} x {cols}" if count == 1 else f"{count} matrices of {rows} x {cols}"
