"""Sees the inputs of weights that are multiplied without their module being called.

Experts that share one three-dimensional parameter are sliced out of it, and mixers such as Mamba's
multiply by the weight of a ``Linear`` that they never call. Their products are seen here, by the
memory that a factor lies in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Place: TypeAlias = "tuple[int, int]"
"""Address and offset of a tensor's memory: what tells an expert's slice of a parameter."""


class Sink(Protocol):
    """What takes in inputs, of shape (..., features)."""

    def add(self, inputs: Tensor) -> None:
        """Take in inputs."""


@dataclass(frozen=True)
class Watched:
    """A weight to look out for."""

    sink: Sink
    features: int
    """Number of inputs."""
    stride: int
    """Distance in memory between the weights of two neighbouring inputs: tells inputs from outputs
    in a square."""
    by_module: bool
    """Whether a hook on the module sees its calls, so that what ``F.linear`` does is counted
    already."""


def place_of(tensor: Tensor) -> Place:
    """Where a tensor begins in memory."""
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


_RIGHT: tuple[Callable[..., Any], ...] = (
    torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm,
)  # fmt: skip


class Products(TorchFunctionMode):
    """While it is entered, products with watched weights give their other factor to the weight's sink."""

    def __init__(self, watched: Mapping[Place, Watched]) -> None:
        super().__init__()
        self.watched = watched

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        for factor, inputs, dim in _products(func, args):
            self._see(factor, inputs, dim, linear=func is F.linear)
        return func(*args, **(kwargs or {}))

    def _see(self, factor: Tensor, inputs: Tensor, dim: int, *, linear: bool) -> None:
        """Count inputs where ``factor`` is a watched weight and ``dim`` its dimension of inputs."""
        found = self.watched.get(place_of(factor))
        if found is None or (linear and found.by_module):
            return
        if (
            factor.shape[dim] == found.features == inputs.shape[-1]
            and factor.stride(dim) == found.stride
        ):
            found.sink.add(inputs)


def _products(
    func: Callable[..., Any], args: tuple[Any, ...]
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Each two-dimensional factor of a product that may be a weight, its inputs, and its dimension of inputs."""
    if func is torch.baddbmm:
        func, args = torch.bmm, args[1:]
    if len(args) < 2 or not all(type(arg) in (Tensor, nn.Parameter) for arg in args[:2]):
        return
    left, right = args[:2]
    if func is F.linear:
        yield right, left, -1
    elif func in _RIGHT and left.ndim > 1 and right.ndim > 1:
        if right.ndim == 2:
            yield right, left, -2
        if left.ndim == 2:
            yield left, right.transpose(-1, -2), -1
        if left.ndim == right.ndim == 3 and len(left) == len(right):
            for a, b in zip(left, right, strict=True):
                yield b, _filled(a), -2
                yield a, _filled(b.transpose(-1, -2)), -1


def _filled(rows: Tensor) -> Tensor:
    """The rows that are not zero: batched experts get every token, with zeros in place of those of other experts."""
    return rows[(rows != 0).any(dim=-1)]
