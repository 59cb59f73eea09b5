"""The difference of two models: what fine-tuning changed, as layers that can be measured."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from spectail.basics.texts import first_names
from spectail.errors import SourceError, SpecError
from spectail.models.lazy_tensor import as_float
from spectail.models.source import Layer, Source

UNCHANGED = "the same weights as in the base: nothing was trained here"
_ADAPTER = re.compile(r"^(.*)\.lora(?:\.[^.]+)?$")
"""The name of an adapter's change: that of the weight it changes, and perhaps the adapter's."""


class UnchangedError(SpecError):
    """Both models have the same weights in a layer, so there is nothing to measure."""


@dataclass(frozen=True)
class Change(Layer):
    """A layer whose weights are those of a tuned model minus those of its base."""

    base: tuple[Layer, ...] = field(default=(), repr=False, compare=False)
    """The same layer of the base model."""

    def read(self) -> Tensor:
        """Read the difference as (n_matrices, rows, cols).

        Raises:
            UnchangedError: Both models have the same weights here.
            SourceError: One of the two cannot be read.

        """
        return self.read_change()[0]

    def read_change(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Read the difference, and the base's weights."""
        (base,) = self.base
        before, after = base.read(), super().read()
        # One of the two may be a module on a GPU, the other a file.
        return _not_zero(after - before.to(after.device)), (before,)

    @property
    def band_axis(self) -> int | None:
        """Along which side bands of both models' matrices can be read; None if they differ."""
        (base,) = self.base
        axis = super().band_axis
        return axis if axis == base.band_axis else None

    def read_band(self, start: int, stop: int) -> Tensor:
        """Read a band of the difference, (1, rows, cols)."""
        (base,) = self.base
        band = super().read_band(start, stop)
        before = base.read_band(start, stop)
        return as_float(band) - as_float(before).to(band.device)


@dataclass(frozen=True)
class AdapterChange(Change):
    """A low-rank adapter, whose weights are a change already.

    Its ``base`` is the layer that it changes. These are several layers if the weight is fused, as
    query, key and value are, and none if the base model has no such weight.
    """

    def read_change(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Read the change, and the base's weights."""
        return _not_zero(Layer.read(self)), tuple(layer.read() for layer in self.base)

    @property
    def band_axis(self) -> None:
        """None: the change is computed from its factors as a whole."""
        return


def _not_zero(change: Tensor) -> Tensor:
    """Return a change, or raise UnchangedError if it changes nothing."""
    if not change.any():
        raise UnchangedError(UNCHANGED)
    return change


def difference(tuned: Source, base: Source) -> Source:
    """Return the layers of ``tuned`` with the weights of ``base`` taken away, paired by name.

    A layer of ``tuned`` that has no counterpart of the same shape is skipped, and its row says why.
    A low-rank adapter (``<layer>.lora``) is a change of the layer ``<layer>`` already: its weights
    stay as they are, and if ``base`` does not have the layer, its row says so. What only ``base``
    has is named in a note.

    Raises:
        SourceError: The models have no layer in common.

    """
    of_base = {layer.name: layer for layer in base.layers}
    layers = tuple(_change(layer, of_base) for layer in tuned.layers)
    if not any(map(_is_paired, layers)):
        raise SourceError(
            f"{tuned.label} and {base.label} have no layer of the same name and shape: "
            f"{first_names([layer.name for layer in tuned.layers])} in the first, "
            f"{first_names(list(of_base))} in the second; a base is the model that was fine-tuned"
        )
    known = {layer.name for layer in tuned.layers}
    missing = [name for name in of_base if name not in known]
    notes = [f"Weights are those of {tuned.label} minus those of {base.label}."]
    # An adapter changes the layers that it was made for.
    if missing and not any(isinstance(layer, AdapterChange) for layer in layers):
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


def _is_paired(layer: Layer) -> bool:
    """Whether the base has a layer's counterpart, or it cannot be told because of a problem."""
    if layer.problem:
        return not layer.no_weight
    return isinstance(layer, Change) and bool(layer.base)


def _change(layer: Layer, of_base: Mapping[str, Layer]) -> Layer:
    """Return a layer minus its counterpart in the base."""
    if layer.no_weight:
        return layer
    match = _ADAPTER.match(layer.name) if layer.kind == "lora" else None
    if match:
        return _adapter_change(layer, match[1], of_base)
    before = of_base.get(layer.name)
    if before is None:
        return replace(layer, no_weight="the base has no layer of this name")
    if problem := layer.problem or before.problem:
        return replace(layer, problem=problem)
    here, there = ((x.n_matrices, x.rows, x.cols) for x in (layer, before))
    if here != there:
        shapes = f"{_spelled(here)} here and {_spelled(there)} in the base"
        return replace(layer, no_weight=f"{shapes}: their difference is not defined")
    return Change(**_fields(layer), base=(before,))


def _adapter_change(layer: Layer, changed: str, of_base: Mapping[str, Layer]) -> Layer:
    """Return an adapter's layer with what the base has of the weight that it changes."""
    if layer.problem:
        return layer
    # The base's rows of a fused weight are its parts: ``c_attn.q``, ``gate_up_proj[3].gate``.
    base = [of_base[changed]] if changed in of_base else _parts(changed, of_base)
    stated = sum(part.numel for part in base)
    problem = next((part.problem for part in base if part.problem), None)
    if not base:
        problem = "the base has no layer of this name"
    elif not problem and stated != layer.numel:
        problem = f"{layer.numel} weights here and {stated} in the base"
    if not problem:
        return AdapterChange(**_fields(layer), base=tuple(base))
    note = "; ".join(filter(None, (layer.note, f"no relative change: {problem}")))
    return AdapterChange(**{**_fields(layer), "note": note})


def _parts(name: str, of_base: Mapping[str, Layer]) -> list[Layer]:
    """Return the layers that are parts of one weight, by their names."""
    return [part for known, part in of_base.items() if known.startswith((f"{name}.", f"{name}["))]


def _fields(layer: Layer) -> dict[str, Any]:
    """Return the fields of a layer by name."""
    return {field.name: getattr(layer, field.name) for field in fields(Layer)}


def _spelled(shape: tuple[int, int, int]) -> str:
    """Spell the shape of a layer's matrices."""
    count, rows, cols = shape
    return f"{rows} x {cols}" if count == 1 else f"{count} matrices of {rows} x {cols}"
