"""Record the inputs of weights that a model multiplies without calling their module.

Experts that share one three-dimensional parameter are sliced out of it, and mixers such as Mamba's
multiply by the weight of a ``Linear`` that they never call, so a hook on a module sees neither.
This module watches the multiplications themselves, and knows a weight by its address in memory.
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
"""A tensor's storage address and its offset there, which differ for the slices of one parameter."""


class Sink(Protocol):
    """An object that collects inputs of shape (..., features)."""

    def add(self, inputs: Tensor) -> None:
        """Collect inputs."""


@dataclass(frozen=True)
class Watched:
    """A weight whose multiplications are watched."""

    sink: Sink
    """The object that collects its inputs."""
    features: int
    """Its number of input features."""
    stride: int
    """The distance in memory between the weights of two neighbouring inputs. In a square matrix
    only this tells inputs from outputs."""
    by_module: bool
    """Whether a hook on the module sees its calls; then ``F.linear`` must not be counted again."""


def place_of(tensor: Tensor) -> Place:
    """Return the place where a tensor begins in memory."""
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())


_RIGHT: tuple[Callable[..., Any], ...] = (
    torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm,
)  # fmt: skip


class Products(TorchFunctionMode):
    """A context in which each product with a watched weight sends its other factor to the sink."""

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
        # This runs for every torch function that a block calls, so it must be cheap.
        for factor, inputs, dim in _products(func, args):
            self._see(factor, inputs, dim, linear=func is F.linear)
        return func(*args, **(kwargs or {}))

    def _see(self, factor: Tensor, inputs: Tensor, dim: int, *, linear: bool) -> None:
        """Collect inputs if ``factor`` is a watched weight whose input dimension is ``dim``."""
        # Views of the weight, such as a transpose, begin at the same address.
        found = self.watched.get(place_of(factor))
        if found is None or (linear and found.by_module):
            return
        if (
            # A parameter of several parts begins where its first part does, so the shape must fit
            # too.
            factor.shape[dim] == found.features == inputs.shape[-1]
            and factor.stride(dim) == found.stride
        ):
            found.sink.add(inputs)


def _products(
    func: Callable[..., Any], args: tuple[Any, ...]
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield (factor, inputs, the factor's input dimension) for all that may be weights in a call.

    Factors are two-dimensional. In ``x @ w`` the inputs of ``w`` lie along its rows (dimension -2),
    in ``w @ x`` along its columns (-1).
    """
    if func is torch.baddbmm:
        # baddbmm adds its first argument to a product of the other two.
        func, args = torch.bmm, args[1:]
    # Subclasses of Tensor may have no address of their own.
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
        # Batched experts: one product per expert.
        if left.ndim == right.ndim == 3 and len(left) == len(right):
            for a, b in zip(left, right, strict=True):
                yield b, _filled(a), -2
                yield a, _filled(b.transpose(-1, -2)), -1


def _filled(rows: Tensor) -> Tensor:
    """Return the rows that are not all zero.

    Batched experts get every token, with zeros in place of the tokens of other experts.
    """
    return rows[(rows != 0).any(dim=-1)]
