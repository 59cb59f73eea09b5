"""A tensor of a model: described at once, read on demand. Every source is turned into a list of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

Index: TypeAlias = "tuple[int | slice, ...]"
"""What to read along the leading dimensions; the empty tuple reads everything."""


@dataclass(frozen=True)
class LazyTensor:
    """One tensor under its full parameter name, whose values are read only when they are asked for."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """torch's name of the stored type, ``bfloat16``."""
    read: Callable[[Index], Tensor] = field(repr=False, compare=False)
    """Reads the indexed piece. A module-level function or a ``functools.partial`` of one, so that it can be pickled."""
    layout: str | None = None
    """What is known about the layout beyond name and shape (``conv``, ``embedding``...): see ``layout.matrices``."""
    problem: str | None = None
    """Why the values cannot be used; the layer's row then says so."""
    note: str = ""
    """What a user should know about the values although they can be used; the layer's row carries it."""
    identity: Hashable = None
    """Equal for two names of one storage (tied weights); None where it cannot be told."""
    memory: Tensor | None = field(default=None, repr=False, compare=False)
    """The tensor itself where it lies in memory just as it is used, so that it can be written; else None."""
    parameters: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)
    """The parameters of a live module that the values come from: the tensor itself, or all that it is made of."""

    @property
    def is_complex(self) -> bool:
        """Whether the entries are complex numbers."""
        return self.dtype.startswith("complex")

    @property
    def is_floating(self) -> bool:
        """Whether the entries are real or complex floating-point numbers."""
        return self.is_complex or self.dtype.startswith(("float", "bfloat"))

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


def in_memory(name: str, tensor: Tensor, *, layout: str | None = None) -> LazyTensor:
    """Describe a tensor in memory; reading it copies nothing.

    One that is spread over processes (a DTensor) is gathered when it is read, by all of them together.
    """
    problem, read = None, piece_of
    identity: Hashable = None
    values = tensor.detach()
    if callable(getattr(tensor, "full_tensor", None)):
        identity, read = id(tensor), _piece_of_gathered
    if values.layout != torch.strided:
        problem = f"stored as a {str(values.layout).removeprefix('torch.')} tensor, only dense ones are read"
    elif values.is_meta:
        problem = "on the meta device, its values were never loaded"
    elif values.numel() and identity is None:
        identity = (values.untyped_storage().data_ptr(), values.storage_offset(), tuple(values.shape), values.stride())
    return LazyTensor(
        name=name,
        shape=tuple(values.shape),
        dtype=dtype_name(values.dtype),
        read=partial(read, values),
        layout=layout,
        problem=problem,
        identity=identity,
        memory=values if read is piece_of else None,
        parameters=(tensor,) if isinstance(tensor, torch.nn.Parameter) else (),
    )


def unreadable(name: str, shape: tuple[int, ...], dtype: str, problem: str, *, layout: str | None = None) -> LazyTensor:
    """Describe a tensor whose values cannot be had, with the reason that its row will show."""
    return LazyTensor(name, shape, dtype, _no_values, layout, problem)


def _no_values(index: Index) -> Tensor:
    """Stand in for values that cannot be had; ``LazyTensor.problem`` keeps every caller from reading them."""
    raise NotImplementedError


def parameters_of(pieces: Iterable[LazyTensor | None]) -> tuple[Tensor, ...]:
    """Collect the live parameters behind several tensors, each once."""
    return tuple({id(p): p for piece in pieces if piece for p in piece.parameters}.values())


def piece_of(tensor: Tensor, index: Index) -> Tensor:
    """Return the indexed piece of a tensor, or all of it for the empty index."""
    return tensor[index] if index else tensor


def _piece_of_gathered(tensor: Any, index: Index) -> Tensor:
    """Return the indexed piece of a tensor that is spread over processes."""
    return piece_of(tensor.full_tensor(), index)


def dtype_name(dtype: torch.dtype) -> str:
    """Give ``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def as_float(tensor: Tensor) -> Tensor:
    """Convert to float32, keeping float64; complex numbers to complex64, keeping complex128."""
    if tensor.dtype in {torch.float64, torch.complex128}:
        return tensor
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)
