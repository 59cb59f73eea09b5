"""What every kind of model looks like to the measurement: named layers whose matrices are read one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """One weight of a model, described without reading it.

    ``rows`` x ``cols`` is the shape of each matrix, in (output, input) orientation; a convolution has one matrix
    per kernel position, a complex spectral weight one per mode, every other layer has one.
    """

    name: str
    kind: str
    """q, k, v, o, gate, up, down, fc1, fc2, qkv, conv, embedding, head, router, recurrent, lora, spectral, linear"""
    block: int | None
    """Index of the repeated unit that the layer belongs to; None outside of blocks."""
    rows: int
    cols: int
    n_matrices: int
    numel: int
    """Number of weights of the layer (of this part, where a parameter is fused)."""
    load: Callable[[], Tensor] = field(repr=False, compare=False)
    """Reads the weights: a tensor of shape (n_matrices, rows, cols), the caller must not modify it."""
    problem: str | None = None
    """Why the layer cannot be read at all (say, packed integers of an unknown quantiser), else None."""


@dataclass(frozen=True)
class Source:
    """An opened model: what it is called, what identifies its content, and its layers in the model's own order."""

    label: str
    fingerprint: str
    layers: tuple[Layer, ...]
    n_vectors: int
    """Parameters with fewer than two dimensions (norms, biases), which are counted and not measured."""
    notes: tuple[str, ...] = ()
    """Things that the user should know about how the source was read, one sentence each."""
