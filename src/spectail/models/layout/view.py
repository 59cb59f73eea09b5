"""A view of a stored tensor for the rules: name, shape, neighbouring tensors and configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spectail.models.layout.arrange import as_one
from spectail.models.layout.configuration import Config
from spectail.models.layout.part import Arrange, Part
from spectail.models.lazy_tensor import Index, LazyTensor
from spectail.models.naming.kinds import kind_of
from spectail.models.naming.names import layer_name


@dataclass(frozen=True)
class View:
    """A stored tensor together with the facts that tell how it is laid out."""

    stored: LazyTensor
    """The tensor."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of all tensors of the model, by name. Neighbouring tensors tell what a shape alone
    does not."""
    config: Config
    """Configuration of the sub-model that the tensor lies in; empty if there is none."""
    name: str
    """Full name of the parameter."""
    shape: tuple[int, ...]
    """Shape without the leading dimensions that ``lead`` removes."""
    lead: Index = ()
    """Index that removes leading dimensions of size one."""

    @property
    def layer(self) -> str:
        """Name of the layer: that of the parameter without ``.weight``."""
        return layer_name(self.name)

    @property
    def last(self) -> str:
        """Last component of the layer's name, such as ``qkv_proj``."""
        return self.layer.rpartition(".")[2]

    def sibling(self, *names: str) -> tuple[int, ...] | None:
        """Return the shape of the first of these names that exists in the same module.

        A name may be that of a layer or of a parameter; the result is None if none exists.
        """
        # The path of the module, with its dot.
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
        """Describe one plain two-dimensional piece: the whole tensor, or some of its rows.

        Args:
            suffix: What to append to the layer's name.
            kind: Kind of the part; by default, the one that the name tells.
            index: Which piece of the tensor it is; by default, all of it.
            size: (rows, cols) of the part; by default, the last two dimensions of the tensor.
            arrange: How the piece becomes (n_matrices, rows, cols).
            note: What a user should know about the cut.

        """
        name = self.layer + suffix
        rows, cols = size or self.shape[-2:]
        return Part(name, kind or kind_of(name), 1, rows, cols, (*self.lead, *index), arrange, note)
