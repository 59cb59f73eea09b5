"""A tensor of a model, described first and read on demand; every source becomes a list of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from spectail.basics.texts import type_and_line
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
MOST_EXPERTS = 2**14
"""How many experts one tensor may stack; each becomes a layer. Models have hundreds, but a damaged
file may state any number."""


@dataclass(frozen=True)
class LazyTensor:
    """One tensor under its full parameter name; its values are read only when they are needed."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """The stored type under torch's name, such as ``bfloat16``."""
    read: Callable[[Index], Tensor] = field(repr=False, compare=False)
    """Reads the indexed piece. It is a module-level function or a ``functools.partial`` of one, so
    that it can be pickled and sent to another process."""
    layout: str | None = None
    """What the source states about the layout beyond name and shape (``conv``, ``embedding``...);
    see ``layout.rules``."""
    problem: str | None = None
    """Why the values cannot be used. The layer's row then shows this text."""
    no_weight: str | None = None
    """Why the tensor is no weight matrix, as its owning module says; empty if the module says that
    it is one. None for files, where only the name can tell: see ``naming.not_weights``."""
    note: str = ""
    """A remark for the user on values that can be used; the layer's row shows it."""
    identity: Hashable = None
    """Equal for two names of the same storage (tied weights). None if that cannot be determined."""
    buffer: bool = False
    """Whether it is a buffer of a live module. A buffer may be a piece of a weight but is never a
    layer."""
    memory: Tensor | None = field(default=None, repr=False, compare=False)
    """The tensor itself if the model computes with it exactly as it lies in memory, so that it can
    be written; else None."""
    parameters: tuple[Tensor, ...] = field(default=(), repr=False, compare=False)
    """The parameters of a live module that the values are computed from: the tensor itself, or all
    of its pieces."""

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

    A quantised tensor is dequantised when it is read. A tensor that is spread over processes (a
    DTensor) is gathered when it is read, and all processes have to read it together. One whose own
    class refuses to be described is unreadable.
    """
    try:
        return _in_memory(name, tensor, layout)
    except Exception as error:  # noqa: BLE001 - the class of a tensor may raise anything
        why = f"a {type(tensor).__name__} that cannot be described ({type_and_line(error)})"
        return unreadable(name, (0, 0), "float32", why, layout=layout)


def _in_memory(name: str, tensor: Tensor, layout: str | None) -> LazyTensor:
    """Describe a tensor in memory."""
    # First of all, since one kind of nested tensors is a subclass without a shape of numbers.
    if tensor.is_nested:
        why = "a nested tensor, which is no matrix"
        return unreadable(name, (0, 0), dtype_name(tensor.dtype), why, layout=layout)
    if not is_plain(tensor):
        return _subclass(name, tensor, layout)
    problem = None
    identity: Hashable = None
    values = plain_view(tensor)
    if values.layout != torch.strided:
        problem = (
            f"stored as a {str(values.layout).removeprefix('torch.')} tensor, "
            "only dense ones are read"
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
    """Describe a tensor whose values differ from the numbers in its storage."""
    dtype = dtype_name(tensor.dtype)
    return LazyTensor(
        name=name,
        shape=shape_of(tensor),
        # Packed integers become floating-point numbers when they are read.
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
    """Describe a tensor whose values cannot be read, with the reason that its row will show."""
    return LazyTensor(name, shape, dtype, _no_values, layout, problem)


def _no_values(index: Index) -> Tensor:
    """Stand in for the values of an unreadable tensor; nobody reads one that has a ``problem``."""
    raise NotImplementedError


def parameters_of(pieces: Iterable[LazyTensor | None]) -> tuple[Tensor, ...]:
    """Collect the live parameters behind several tensors, each once."""
    # Parameters are compared by identity: ``==`` on tensors compares their entries.
    return tuple({id(p): p for piece in pieces if piece for p in piece.parameters}.values())


def piece_of(tensor: Tensor, index: Index) -> Tensor:
    """Return the indexed piece of a tensor, or all of it for the empty index."""
    return tensor[index] if index else tensor


def _piece_of_subclass(tensor: Tensor, index: Index) -> Tensor:
    """Convert a tensor subclass to a plain tensor and return the indexed piece."""
    return piece_of(to_plain(tensor), index)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type without torch's prefix: ``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def as_float(tensor: Tensor) -> Tensor:
    """Convert to float32 or complex64; float64 and complex128 stay as they are."""
    # A lazily conjugated or negated view shares the bytes of its base; make the real values first.
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.dtype in {torch.float64, torch.complex128}:
        return tensor
    return tensor.to(torch.complex64 if tensor.is_complex() else torch.float32)
