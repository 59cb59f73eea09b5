"""What the measurement sees of any model: named layers whose matrices are read one at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from spectail.errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor

    from spectail.models.layout.part import Part
    from spectail.models.lazy_tensor import LazyTensor

NOT_A_WEIGHT = "parameter"
"""The kind of a row whose tensor is no weight matrix (a class token, a position table). Such a
tensor is never measured or changed."""


@dataclass(frozen=True)
class Layer:
    """One weight of a model: its name, its shape and how to read it.

    ``rows`` x ``cols`` is the shape of each matrix, in (output, input) orientation. A convolution
    has one matrix per kernel position and a complex spectral weight has one per mode. Every other
    layer has one matrix.
    """

    name: str
    kind: str
    """One of q, k, v, o, gate, up, down, fc1, fc2, qkv, kv, gate_up, conv, embedding, head, router,
    recurrent, lora, spectral, linear; ``parameter`` if it is no weight matrix."""
    block: int | None
    """Index of the repeated unit of the network that the layer belongs to; None outside of blocks.
    """
    rows: int
    cols: int
    n_matrices: int
    numel: int
    """Number of weights of the layer. If a parameter is fused, only this layer's part counts."""
    tensor: LazyTensor = field(repr=False, compare=False)
    """The stored tensor that holds the layer, and perhaps other layers too."""
    part: Part | None = field(repr=False, compare=False)
    """Which piece of the tensor is the layer, and how it is cut into matrices; None if it cannot be
    read."""
    problem: str | None = None
    """Why the layer cannot be read at all (for example packed integers of an unknown quantiser),
    else None."""
    no_weight: str | None = None
    """Why the layer is no weight matrix and is left out of everything; None for a weight."""
    note: str = ""
    """A remark for the user on how the weight was read; it becomes part of the row's reason."""
    saved_as: str = field(default="", compare=False)
    """The layer's name in the file that transformers writes for a live model, if it differs."""

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The live parameters that the layer is read from; empty for files and state dicts."""
        return self.tensor.parameters

    def read(self) -> Tensor:
        """Read the weights as (n_matrices, rows, cols) in float32, or float64 if stored so.

        The result may share memory with the model: do not modify it.

        Raises:
            SourceError: The layer cannot be read, or its source has changed since it was opened.

        """
        if self.part is None or self.problem:
            raise SourceError(f"{self.name} cannot be read: {self.problem or self.no_weight}")
        # The shape was announced from a header or from metadata. Check it against what was really
        # read, since a source may have changed in between.
        matrices = self.part.read(self.tensor)
        expected = (self.n_matrices, self.rows, self.cols)
        if tuple(matrices.shape) != expected:
            raise SourceError(
                f"{self.name} was announced as {expected} and reads as {tuple(matrices.shape)}: "
                "its source has changed since it was opened; open it again"
            )
        return matrices

    @property
    def band_axis(self) -> int | None:
        """Along which side of its one matrix bands can be read: 0 for rows, 1 for columns.

        None if the layer has several matrices, or one that does not lie in the tensor row by row.
        """
        return None if self.part is None or self.problem else self.part.band_axis

    def read_band(self, start: int, stop: int) -> Tensor:
        """Read a band along ``band_axis``, (1, rows, cols), in float16 or wider."""
        assert self.part is not None
        return self.part.read_band(self.tensor, start, stop)

    def write(self, values: Tensor) -> None:
        """Write values (n_matrices, rows, cols) into the model; other layers keep theirs.

        Raises:
            SourceError: The layer does not lie in memory in the form in which it is used. It is in
                a file, quantised or computed from other tensors.

        """
        # ``memory`` is missing if writing to the tensor would not change what the model computes.
        if self.part is None or self.problem or self.tensor.memory is None:
            why = (
                self.problem
                or self.no_weight
                or "it is computed from other tensors or lies in a file"
            )
            raise SourceError(f"{self.name} cannot be written: {why}")
        self.part.write(self.tensor.memory, values)


class SourceFile(Protocol):
    """A file that a source is read from."""

    def check_path(self) -> None:
        """Raise ``SourceChangedError`` if the path holds another content than was opened."""


@dataclass(frozen=True)
class Source:
    """An opened model: its label, the fingerprint of its content, and its layers in order."""

    label: str
    fingerprint: str
    layers: tuple[Layer, ...]
    n_vectors: int
    """Number of parameters with fewer than two dimensions (norms, biases). They are counted, not
    measured."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on how the source was read, one sentence each."""
    tied: tuple[Layer, ...] = ()
    """Layers that use the weight of one of ``layers``, as the head of many language models does.
    Only WeightWatcher's preset measures them."""
    files: tuple[SourceFile, ...] = field(default=(), repr=False, compare=False)
    """All files that the layers are read from; empty for a model in memory."""
