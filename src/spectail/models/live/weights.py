"""Read and write the weights of a live module as matrices, in place and for every stored layout.

Here a convolution is one matrix, (out, in / groups x kernel positions), with the entries of a row
in the order in which torch stores them. The measurement takes one matrix per kernel position
instead.
"""

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

WRITABLE = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)
"""Types of parameters that can be written."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
"""Modules that multiply by their weight. A weight that several of these share stays one weight."""


@dataclass(frozen=True, eq=False)
class Weight:
    """One layer of a live module as a matrix (output, input) that lies inside of a parameter."""

    name: str
    path: str
    """Path of the parameter as ``named_parameters`` gives it, wrappers included."""
    owner: nn.Module
    tensor: Tensor = field(repr=False)
    """The whole parameter."""
    layout: str | None
    """The layout that the owner implies: see ``layout.rules``."""
    part: Part
    groups: int | None = None
    """Groups of a transposed convolution, whose weight is stored as (in, out / groups, ...); else
    None."""
    shared: tuple[str, ...] = ()
    """Paths of the same parameter in other modules."""

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return self.part.rows if self.groups is None else self.part.cols * self.groups

    @property
    def cols(self) -> int:
        """Number of weights of each output."""
        return self.part.n_matrices * self.part.rows * self.part.cols // self.rows

    @property
    def expert(self) -> int | None:
        """The slice of a three-dimensional parameter that it lies in; None for a matrix."""
        first = self.part.index[0] if self.part.index else None
        return first if isinstance(first, int) and self.tensor.ndim > 2 else None

    def read(self) -> Tensor:
        """Return a copy, (rows, cols), in the stored type."""
        pieces = self.part.view(self.tensor)
        if self.groups is not None:
            n, inputs, outputs = pieces.shape
            pieces = (
                # (positions, in, out / groups) to (positions, out, in / groups).
                pieces.reshape(n, self.groups, inputs // self.groups, outputs)
                .transpose(2, 3)
                .flatten(1, 2)
            )
        # Kernel positions last, so that a row has torch's order of entries.
        return pieces.permute(1, 2, 0).reshape(self.rows, self.cols).clone()

    def write(self, values: Tensor) -> None:
        """Write values (rows, cols) into the parameter; the rest of it is not touched."""
        pieces = values.reshape(self.rows, -1, self.part.n_matrices).permute(2, 0, 1)
        if self.groups is not None:
            n, outputs, inputs = pieces.shape
            pieces = (
                # The inverse of the steps in ``read``.
                pieces.reshape(n, self.groups, outputs // self.groups, inputs)
                .transpose(2, 3)
                .flatten(1, 2)
            )
        self.part.write(self.tensor, pieces)


Owned: TypeAlias = "tuple[str, nn.Module]"
"""Path of a parameter, and the module that holds it."""


def owners(module: nn.Module) -> Mapping[object, list[Owned]]:
    """Map every parameter, by its memory, to all its places; tied weights have more than one."""
    found: dict[object, list[Owned]] = {}
    for path, owner in module.named_modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and not nn.parameter.is_lazy(parameter):
                identity = in_memory(name, parameter).identity
                found.setdefault(identity, []).append((f"{path}.{name}" if path else name, owner))
    return found


def editable(layer: Layer, places: Mapping[object, list[Owned]]) -> Weight:
    """Return the weight behind a layer of ``module_source``, ready to be read and written.

    ``places`` are the ``owners`` of the same module. A weight that several modules multiply by (the
    shared blocks of Zamba) is one weight, and writing it changes it in all of them.

    Raises:
        SourceError: The weight is quantised, computed from other tensors, tied to an embedding, or
            not of floating-point numbers.

    """
    if layer.problem or layer.no_weight:
        raise SourceError(f"{layer.name} cannot be written: {layer.problem or layer.no_weight}")
    tensor, part = layer.tensor, layer.part
    if part is None or type(tensor.memory) is not Tensor or tensor.identity not in places:
        raise SourceError(
            f"{layer.name} cannot be written: it is quantised or computed from other tensors; "
            "dequantise it, or merge its parametrisation, first"
        )
    if tensor.memory.dtype not in WRITABLE:
        raise SourceError(
            f"{layer.name} cannot be written: "
            f"expected a matrix of floating-point numbers, not {tensor.dtype}"
        )
    (path, owner), *others = places[tensor.identity]
    # Pruning an output layer that is tied to an embedding would change the embedding too.
    alone = [
        other
        for other, module in others
        if not (isinstance(owner, _PRODUCTS) and type(module) is type(owner))
    ]
    if alone:
        raise SourceError(
            f"{layer.name} cannot be written alone: it is tied to {alone[0]}; leave it out"
        )
    # Only transposed convolutions are stored with the inputs first, and per group.
    groups = owner.groups if isinstance(owner, _TRANSPOSED) and part.kind == "conv" else None
    shared = tuple(other for other, _ in others)
    return Weight(layer.name, path, owner, tensor.memory, tensor.layout, part, groups, shared)
