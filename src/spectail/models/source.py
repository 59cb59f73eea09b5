"""What every kind of model looks like to the measurement: named layers whose matrices are read one at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spectail.errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor

    from spectail.models.layout.part import Part
    from spectail.models.lazy_tensor import LazyTensor

NOT_A_WEIGHT = "parameter"
"""Kind of a row whose tensor is no weight matrix (a class token, a position table): never measured
or changed."""


@dataclass(frozen=True)
class Layer:
    """One weight of a model: what it is called, and where its matrices are.

    ``rows`` x ``cols`` is the shape of each matrix, in (output, input) orientation; a convolution
    has one matrix per kernel position, a complex spectral weight one per mode, every other layer
    has one.
    """

    name: str
    kind: str
    """q, k, v, o, gate, up, down, fc1, fc2, qkv, kv, gate_up, conv, embedding, head, router,
    recurrent, lora, spectral, linear, or ``parameter`` for what is no weight matrix."""
    block: int | None
    """Index of the repeated unit that the layer belongs to; None outside of blocks."""
    rows: int
    cols: int
    n_matrices: int
    numel: int
    """Number of weights of the layer (of this part, where a parameter is fused)."""
    tensor: LazyTensor = field(repr=False, compare=False)
    """The stored tensor that holds the layer, perhaps with others beside it."""
    part: Part | None = field(repr=False, compare=False)
    """Which piece of the tensor the layer is, and how that becomes matrices; None where it cannot
    be read."""
    problem: str | None = None
    """Why the layer cannot be read at all (say, packed integers of an unknown quantiser), else
    None."""
    no_weight: str | None = None
    """Why the layer is no weight matrix, and so is left out of everything; None for a weight."""
    note: str = ""
    """What a user should know about how the weight was read; it becomes part of the row's
    reason."""
    saved_as: str = field(default="", compare=False)
    """The layer's name in the file that transformers writes for a live model, where it differs."""

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The parameters of a live module that the layer is read from; none for files and state dicts."""
        return self.tensor.parameters

    def read(self) -> Tensor:
        """Read the weights as (n_matrices, rows, cols), in float32 or, where they are stored so, float64.

        The result may share memory with the model: do not modify it.

        Raises:
            SourceError: the layer cannot be read, or its source has changed since it was opened.

        """
        if self.part is None or self.problem:
            raise SourceError(f"{self.name} cannot be read: {self.problem or self.no_weight}")
        matrices = self.part.read(self.tensor)
        expected = (self.n_matrices, self.rows, self.cols)
        if tuple(matrices.shape) != expected:
            raise SourceError(
                f"{self.name} was announced as {expected} and reads as {tuple(matrices.shape)}: "
                "its source has changed since it was opened; open it again"
            )
        return matrices

    def write(self, values: Tensor) -> None:
        """Put values of shape (n_matrices, rows, cols) in the layer's place; the rest of its tensor stays untouched.

        Raises:
            SourceError: the layer does not lie in memory as it is used (a file, a quantised or
                computed weight).

        """
        if self.part is None or self.problem or self.tensor.memory is None:
            why = (
                self.problem
                or self.no_weight
                or "it is computed from other tensors or lies in a file"
            )
            raise SourceError(f"{self.name} cannot be written: {why}")
        self.part.write(self.tensor.memory, values)


@dataclass(frozen=True)
class Source:
    """An opened model: what it is called, what identifies its content, and its layers in the model's own order."""

    label: str
    fingerprint: str
    layers: tuple[Layer, ...]
    n_vectors: int
    """Parameters with fewer than two dimensions (norms, biases), which are counted and not
    measured."""
    notes: tuple[str, ...] = ()
    """Things that the user should know about how the source was read, one sentence each."""
