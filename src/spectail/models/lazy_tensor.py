"""A tensor of a model: described at once, read on demand. Every source is turned into a list of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from spectail.models.subclasses import (
    identity_of,
    is_plain,
    plain_view,
    shape_of,
    to_plain,
    why_unreadable,
)

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
    """Reads the indexed piece. A module-level function or a ``functools.partial`` of one, so that
    it can be pickled."""
    layout: str | None = None
    """What is known about the layout beyond name and shape (``conv``, ``embedding``...): see
    ``layout.rules``."""
    problem: str | None = None
    """Why the values cannot be used; the layer's row then says so."""
    no_weight: str | None = None
    """Why the module that owns it makes it no weight matrix, empty where it makes it one; None
    where only the name can
    tell (files): see ``naming.roles``."""
    note: str = ""
    """What a user should know about the values although they can be used; the layer's row carries
    it."""
    identity: Hashable = None
    """Equal for two names of one storage (tied weights); None where it cannot be told."""
    buffer: bool = False
    """Whether it is a buffer of a live module: a piece of a weight, or nothing."""
    memory: Tensor | None = field(default=None, repr=False, compare=False)
    """The tensor itself where it lies in memory just as it is used, so that it can be written; else
    None."""
    parameters: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)
    """The parameters of a live module that the values come from: the tensor itself, or all that it
    is made of."""

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
    """Describe a tensor in memory; reading a plain one copies nothing.

    A quantised one is dequantised when it is read; one that is spread over processes (a DTensor) is
    gathered, by all of them together.
    """
    if not is_plain(tensor):
        return _subclass(name, tensor, layout)
    problem = None
    identity: Hashable = None
    values = plain_view(tensor)
    if values.is_nested:
        return unreadable(
            name,
            (0, 0),
            dtype_name(values.dtype),
            "a nested tensor, which is no matrix",
            layout=layout,
        )
    if values.layout != torch.strided:
        problem = (
            f"stored as a {str(values.layout).removeprefix('torch.')} tensor, only dense ones are "
            "read"
        )
    elif values.is_meta:
        problem = "on the meta device, its values were never loaded"
    elif values.numel():
        identity = identity_of(values)
    return LazyTensor(
        name=name,
        shape=tuple(values.shape),
        dtype=dtype_name(values.dtype),
        read=partial(piece_of, values),
        layout=layout,
        problem=problem,
        identity=identity,
        memory=values,
        parameters=(tensor,) if isinstance(tensor, torch.nn.Parameter) else (),
    )


def _subclass(name: str, tensor: Tensor, layout: str | None) -> LazyTensor:
    """Describe a tensor that computes with other values than those in its storage."""
    dtype = dtype_name(tensor.dtype)
    return LazyTensor(
        name=name,
        shape=shape_of(tensor),
        dtype=dtype if tensor.dtype.is_floating_point or tensor.dtype.is_complex else "float32",
        read=partial(_piece_of_subclass, tensor),
        layout=layout,
        problem=why_unreadable(tensor),
        identity=identity_of(tensor),
        parameters=(tensor,) if isinstance(tensor, torch.nn.Parameter) else (),
    )


def unreadable(
    name: str, shape: tuple[int, ...], dtype: str, problem: str, *, layout: str | None = None
) -> LazyTensor:
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


def _piece_of_subclass(tensor: Tensor, index: Index) -> Tensor:
    """Return the indexed piece of the plain tensor that a subclass stands for."""
    return piece_of(to_plain(tensor), index)


def dtype_name(dtype: torch.dtype) -> str:
    """Give ``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def as_float(tensor: Tensor) -> Tensor:
    """Convert to float32, keeping float64; complex numbers to complex64, keeping complex128."""
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.dtype in {torch.float64, torch.complex128}:
        return tensor
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)
