"""Weights of a live module that can be written in place, part by part, whatever the layout they are stored in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from spectail.errors import SourceError
from spectail.models.layout.part import Part
from spectail.models.lazy_tensor import in_memory
from spectail.models.source import Layer

WRITABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Weight:
    """One layer of a live module: a matrix (output, input) inside of a parameter."""

    name: str
    rows: int
    cols: int
    path: str
    """Of the parameter, as ``named_parameters`` calls it, wrappers included."""
    owner: nn.Module
    tensor: Tensor = field(repr=False)
    """The whole parameter."""
    layout: str | None
    """What the owner says about the layout: see ``matrices``."""
    part: Part

    @property
    def expert(self) -> int | None:
        """Which slice of a three-dimensional parameter it lies in; None for a matrix."""
        first = self.part.index[0] if self.part.index else None
        return first if isinstance(first, int) and self.tensor.ndim > 2 else None

    def read(self) -> Tensor:
        """Return a copy, (rows, cols), in the stored type."""
        return self.part.view(self.tensor)[0].clone()

    def write(self, values: Tensor) -> None:
        """Put values (rows, cols) in its place; nothing else of the parameter is touched."""
        self.part.write(self.tensor, values.unsqueeze(0))


Owned: TypeAlias = "tuple[str, nn.Module]"
"""Path of a parameter, and the module that holds it."""


def owners(module: nn.Module) -> Mapping[object, list[Owned]]:
    """All places of every parameter, by its memory; more than one place where weights are tied."""
    found: dict[object, list[Owned]] = {}
    for path, owner in module.named_modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and not nn.parameter.is_lazy(parameter):
                identity = in_memory(name, parameter).identity
                found.setdefault(identity, []).append((f"{path}.{name}" if path else name, owner))
    return found


def editable(layer: Layer, places: Mapping[object, list[Owned]]) -> Weight:
    """Return the weight behind a layer of ``module_source``; ``places`` are the ``owners`` of the same module.

    Raises:
        SourceError: it is quantised, computed from other tensors, tied, or no matrix of floating-point numbers.

    """
    if layer.problem or layer.no_weight:
        raise SourceError(f"{layer.name} cannot be written: {layer.problem or layer.no_weight}")
    tensor, part = layer.tensor, layer.part
    if part is None or type(tensor.memory) is not Tensor or tensor.identity not in places:
        raise SourceError(
            f"{layer.name} cannot be written: it is quantised or computed from other tensors; "
            "dequantise it, or merge its parametrisation, first"
        )
    if part.n_matrices != 1 or tensor.memory.dtype not in WRITABLE:
        what = f"{part.n_matrices} matrices" if part.n_matrices != 1 else tensor.dtype
        raise SourceError(f"{layer.name} cannot be written: expected one matrix of floating-point numbers, not {what}")
    (path, owner), *others = places[tensor.identity]
    if others:
        raise SourceError(f"{layer.name} cannot be written alone: it is tied to {others[0][0]}; leave it out")
    return Weight(layer.name, part.rows, part.cols, path, owner, tensor.memory, tensor.layout, part)
