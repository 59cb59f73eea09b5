"""A stored tensor as the rules see it: its name and shape, the tensors around it, and its model's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spectail.models.layout.arrange import as_one
from spectail.models.layout.configuration import Config
from spectail.models.layout.part import Arrange, Part
from spectail.models.lazy_tensor import Index, LazyTensor
from spectail.models.naming.blocks import kind_of
from spectail.models.naming.names import layer_name


@dataclass(frozen=True)
class View:
    """A stored tensor with what surrounds it."""

    stored: LazyTensor
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of all tensors of the model by name: siblings tell what a shape alone does not."""
    config: Config
    """Configuration of the sub-model that the tensor lies in; empty where there is none."""
    name: str
    shape: tuple[int, ...]
    lead: Index = ()
    """Leading dimensions of size one that were taken off."""

    @property
    def layer(self) -> str:
        """Name of the layer: that of the parameter without ``.weight``."""
        return layer_name(self.name)

    @property
    def last(self) -> str:
        """Last component of the layer's name, ``qkv_proj``."""
        return self.layer.rpartition(".")[2]

    def sibling(self, *names: str) -> tuple[int, ...] | None:
        """Shape of the first of these layers or parameters that lies in the same module as this layer."""
        stem = self.layer.removesuffix(self.last)
        for name in names:
            for full in (f"{stem}{name}.weight", f"{stem}{name}"):
                if full in self.shapes:
                    return self.shapes[full]
        return None

    def matrix(
        self,
        suffix: str = "",
        kind: str | None = None,
        index: Index = (),
        *,
        size: tuple[int, ...] | None = None,
        arrange: Arrange = as_one,
        note: str = "",
    ) -> Part:
        """Describe one plain two-dimensional piece: the whole tensor, or some of its rows."""
        name = self.layer + suffix
        rows, cols = size or self.shape[-2:]
        return Part(name, kind or kind_of(name), 1, rows, cols, (*self.lead, *index), arrange, note)
