"""A tensor as a source holds it: described at once, read on demand. Every source is turned into a list of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

Index: TypeAlias = "tuple[int | slice, ...]"
"""What to read along the leading dimensions; the empty tuple reads everything."""


@dataclass(frozen=True)
class Stored:
    """One tensor of a model or a file, under its full parameter name."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """torch's name of the stored type, ``bfloat16``."""
    read: Callable[[Index], Tensor] = field(repr=False, compare=False)
    hint: str | None = None
    """What the owning module says about the layout, where there is one: see ``matrices``."""
    problem: str | None = None
    """Why the values cannot be used."""
    identity: Hashable = None
    """Equal for two names of one storage (tied weights); None where it cannot be told."""

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


def stored_tensor(name: str, tensor: Tensor, *, hint: str | None = None) -> Stored:
    """Describe a tensor in memory; reading it copies nothing.

    One that is spread over processes (a DTensor) is gathered when it is read, by all of them together.
    """
    problem, read = None, take
    identity: Hashable = None
    if callable(getattr(tensor, "full_tensor", None)):
        identity, read = id(tensor), _take_gathered
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        problem = f"stored as a {str(tensor.layout).removeprefix('torch.')} tensor, only dense ones are read"
    elif tensor.is_meta:
        problem = "on the meta device, its values were never loaded"
    elif tensor.numel() and identity is None:
        identity = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
    return Stored(
        name=name,
        shape=tuple(tensor.shape),
        dtype=dtype_name(tensor.dtype),
        read=partial(read, tensor),
        hint=hint,
        problem=problem,
        identity=identity,
    )


def take(tensor: Tensor, index: Index) -> Tensor:
    """Read the indexed piece of a tensor in memory."""
    return tensor[index] if index else tensor


def _take_gathered(tensor: Any, index: Index) -> Tensor:
    """Read the indexed piece of a tensor that is spread over processes."""
    return take(tensor.full_tensor(), index)


def dtype_name(dtype: torch.dtype) -> str:
    """Give ``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def as_float(tensor: Tensor) -> Tensor:
    """Convert to float32, keeping float64; complex numbers to complex64, keeping complex128."""
    if tensor.dtype in {torch.float64, torch.complex128}:
        return tensor
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)
