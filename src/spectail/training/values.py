"""Values of an optimizer's groups, compared and copied: numbers, tensors of one, anything else."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def copied(value: Any) -> Any:
    """A tensor in memory of its own; anything else as it is."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def times_written(value: Any) -> int:
    """How often a tensor has been written in place; 0 for anything else."""
    return value._version if isinstance(value, Tensor) else 0


def is_number(value: Any) -> bool:
    """Whether a value is a number or a tensor of one."""
    return isinstance(value, Tensor | Real)


def close(a: Any, b: Any) -> bool:
    """Whether two rates are the same but for rounding."""
    if a is b:
        return True
    return is_number(a) and is_number(b) and math.isclose(float(a), float(b), rel_tol=1e-6)


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether one tensor can be copied into the other."""
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, tensors and lists of such included."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return alike(a, b) and torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    equal = a == b
    return bool(equal.all()) if hasattr(equal, "all") else bool(equal)


def is_plain(value: Any) -> bool:
    """Whether JSON can hold a value, once ``plain`` has made numbers of tensors."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return (
        value is None
        or isinstance(value, bool | int | float | str)
        or (isinstance(value, Tensor) and value.numel() == 1)
    )


def plain(value: Any) -> Any:
    """A value as JSON holds it: numbers for tensors, lists for tuples."""
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value.item() if isinstance(value, Tensor) else value
