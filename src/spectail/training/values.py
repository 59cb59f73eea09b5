"""Compare and copy the values in an optimizer's groups.

Values are numbers, tensors of one number, or anything else that an optimizer puts there.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def copied(value: Any) -> Any:
    """Return a copy of a tensor; return anything else itself."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def times_written(value: Any) -> int:
    """Return how often a tensor has been written in place; 0 for anything else."""
    # Torch's own counter: the only way to notice a write that leaves the same object in the group.
    return value._version if isinstance(value, Tensor) else 0


def is_number(value: Any) -> bool:
    """Whether a value is a number or a tensor of one."""
    return isinstance(value, Tensor | Real)


def close(a: Any, b: Any) -> bool:
    """Whether two rates are equal up to rounding."""
    if a is b:
        return True
    return is_number(a) and is_number(b) and math.isclose(float(a), float(b), rel_tol=1e-6)


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape, type and device."""
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal; tensors and lists of tensors compare by their numbers."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return alike(a, b) and torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    equal = a == b
    return bool(equal.all()) if hasattr(equal, "all") else bool(equal)


def is_plain(value: Any) -> bool:
    """Whether ``plain`` can turn a value into one that JSON can hold."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return (
        value is None
        or isinstance(value, bool | int | float | str)
        or (isinstance(value, Tensor) and value.numel() == 1)
    )


def plain(value: Any) -> Any:
    """Return a value for JSON: numbers for tensors, lists for tuples."""
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value.item() if isinstance(value, Tensor) else value
