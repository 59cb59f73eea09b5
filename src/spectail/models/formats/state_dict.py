"""Find the weights in what a training script saved: under a usual key, else in all nested dicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from spectail.basics.memory import in_words
from spectail.errors import SourceError
from spectail.models.formats.pickled import ArrayRef, Inert, TensorRef, tensors_in
from spectail.models.formats.ranges import StoredArray, stored_tensor
from spectail.models.lazy_tensor import Index, LazyTensor, in_memory, piece_of, unreadable
from spectail.models.naming.names import lightning_names

Leaf: TypeAlias = "Tensor | np.ndarray[Any, Any] | LazyTensor | TensorRef | ArrayRef"
"""Anything that holds the values of one tensor."""

_MODEL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "params_ema",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "ema",
)
"""Usual keys of a state dict. The trained weights come before their moving averages."""
_NO_MODEL = (
    "optim",
    "opt_state",
    "sched",
    "scaler",
    "rng",
    "args",
    "config",
    "hyper",
    "callbacks",
    "loops",
    "_metadata",
)
"""Beginnings of keys under which scripts save other things than a model."""


_LIGHTNING = "pytorch-lightning_version"
"""A key of every Lightning checkpoint. Its names begin with the attribute that holds the network.
"""


def state_tensors(value: object) -> list[LazyTensor]:
    """List the tensors of the state dict within a saved or given value.

    Raises:
        SourceError: The value is a module, or another object with tensors inside.

    """
    found = _Search().find(value, 4)
    names = lightning_names(list(found)) if _LIGHTNING in _entries(value) else found
    return [_described(name, leaf) for name, leaf in zip(names, found.values(), strict=True)]


Leaf_TYPES = (Tensor, np.ndarray, LazyTensor, TensorRef, ArrayRef)
"""The types of ``Leaf``."""


def _is_leaf(value: object) -> bool:
    """Whether a value is a tensor or an array of numbers."""
    if isinstance(value, ArrayRef):
        return value.value is not None
    return isinstance(value, Leaf_TYPES)


def _shape(leaf: Leaf) -> tuple[int, ...]:
    """Return the shape of any kind of tensor."""
    if isinstance(leaf, ArrayRef):
        return () if leaf.value is None else leaf.value.shape
    # One kind of nested tensors has no shape at all.
    try:
        return (0, 0) if isinstance(leaf, Tensor) and leaf.is_nested else tuple(leaf.shape)
    except Exception:  # noqa: BLE001 - the class of a tensor may raise anything: its row says so
        return 0, 0


def _entries(value: object) -> Mapping[Any, Any]:
    """Return the entries of a dict, or of a list that holds matrices or dicts."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple) and any(
        isinstance(item, Mapping) or (_is_leaf(item) and len(_shape(item)) >= 2) for item in value
    ):
        return dict(enumerate(value))
    return {}


def _is_optimizer(value: object) -> bool:
    """Whether a value is an optimizer's state dict, which scripts save under any name."""
    return isinstance(value, Mapping) and "param_groups" in value and "state" in value


class _Search:
    """The search for a state dict. Containers may hold each other, so each is searched once."""

    def __init__(self) -> None:
        self._searched: set[int] = set()
        self._inert: set[int] = set()

    def find(self, value: object, depth: int) -> dict[str, Leaf]:
        """Find the state dict: tensors by name."""
        if isinstance(value, Leaf_TYPES):
            return {"weight": value} if _is_leaf(value) else {}
        entries = _entries(value)
        if not entries or depth == 0 or _is_optimizer(value) or id(value) in self._searched:
            self._refuse_modules(value)
            return {}
        self._searched.add(id(value))
        # A dict with a matrix is the state dict itself. Vectors
        # alone may be statistics beside the model.
        own = {str(name): leaf for name, leaf in entries.items() if _is_leaf(leaf)}
        if any(len(_shape(leaf)) >= 2 for leaf in own.values()):
            return own | self._objects(entries) | self._inner(entries, depth)
        for key in _MODEL_KEYS:
            # The first usual key that leads to tensors wins, so that an average of the weights is
            # never read beside the weights themselves.
            if key in entries:
                self._refuse_modules(entries[key])
                if _entries(entries[key]) and (state := self.find(entries[key], depth - 1)):
                    return state
        inner = self._inner(entries, depth)
        # Nothing found: perhaps a module was saved whole, under a key of its own.
        if not inner:
            for key, item in entries.items():
                if not str(key).lower().startswith(_NO_MODEL):
                    self._refuse_modules(item)
        return inner or own

    def _inner(self, entries: Mapping[Any, Any], depth: int) -> dict[str, Leaf]:
        """Collect the state dicts of nested dicts; their keys precede the names."""
        found: dict[str, Leaf] = {}
        for key, inner in entries.items():
            if _entries(inner) and not str(key).lower().startswith(_NO_MODEL):
                below = self.find(inner, depth - 1)
                found.update({f"{key}.{name}": leaf for name, leaf in below.items()})
        return found

    def _objects(self, entries: Mapping[Any, Any]) -> dict[str, Leaf]:
        """List objects beside the tensors of a state dict that hold tensors themselves.

        An example is a quantiser's class. Each gives a row that says why it is not read.
        """
        found: dict[str, Leaf] = {}
        for name, item in entries.items():
            inside = list(tensors_in(item, self._inert)) if isinstance(item, Inert) else []
            if inside and not str(name).lower().startswith(_NO_MODEL):
                # The row has the shape of the largest tensor, which most likely is the weight.
                largest = max(inside, key=lambda ref: math.prod(ref.shape))
                problem = (
                    f"stored as an object of class {item.global_name}, which is not read from a "
                    "file"
                )
                found[str(name)] = replace(largest, storage=None, problem=problem)
        return found

    def _refuse_modules(self, value: object) -> None:
        """Refuse an object that holds tensors: it is a module that was saved whole."""
        if isinstance(value, Inert) and any(True for _ in tensors_in(value, self._inert)):
            raise SourceError(
                f"holds tensors inside of a Python object of class {value.global_name} (a module "
                "saved whole?), and objects are never loaded; "
                "save the module's state_dict() instead: torch.save(model.state_dict(), 'model.pt')"
            )


def _described(name: str, leaf: Leaf) -> LazyTensor:
    """Describe a tensor of any kind under its name."""
    if isinstance(leaf, LazyTensor):
        return replace(leaf, name=name)
    if isinstance(leaf, TensorRef):
        return _from_file(name, leaf)
    if isinstance(leaf, ArrayRef):
        return in_memory(name, as_tensor(np.asarray(leaf.value)))
    return in_memory(name, as_tensor(leaf))


_REPEATED = 2**24
"""Bytes by which a view may exceed its storage. Expanded tensors are small, if they are saved."""


def _from_file(name: str, ref: TensorRef) -> LazyTensor:
    """Describe a tensor of a torch file."""
    if ref.problem or ref.storage is None:
        dtype = str(ref.dtype).removeprefix("torch.")
        return unreadable(name, ref.shape, dtype, ref.problem or "without values")
    array = ref.array()
    stored, shown = ref.storage.size, math.prod(ref.shape) * ref.dtype.itemsize
    if shown > stored + _REPEATED:
        dtype = str(ref.dtype).removeprefix("torch.")
        problem = (
            f"a view that repeats {in_words(stored)} in the file as {in_words(shown)}: "
            "save the tensor after contiguous()"
        )
        return unreadable(name, ref.shape, dtype, problem)
    if ref.scales is None:
        return stored_tensor(name, array)
    return LazyTensor(name, ref.shape, "float32", partial(_dequantised, array, ref.scales))


def _dequantised(array: StoredArray, scales: tuple[Any, ...], index: Index) -> Tensor:
    """Compute (q - zero point) * scale for the whole tensor, or per slice along one dimension."""
    try:
        scale, zero = (_numbers(part).double() for part in scales[:2])
        if len(scales) > 2:
            along = [1] * len(array.shape)
            along[scales[2]] = -1
            scale, zero = scale.reshape(along), zero.reshape(along)
        # In float64, so that the result is rounded only once.
        return piece_of(((array.read().double() - zero) * scale).float(), index)
    # What a damaged pickle gives for a scale may be of any type and shape.
    except (RuntimeError, TypeError, ValueError, IndexError, OverflowError):
        raise SourceError("the scales of its integers are damaged") from None


def _numbers(part: Any) -> Tensor:
    """Return scales that are stored as a tensor or given as a number or a list."""
    return part.array().read() if isinstance(part, TensorRef) else torch.tensor(part)


def as_tensor(value: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """View an array as a tensor; types that torch lacks are converted."""
    if isinstance(value, Tensor):
        return value
    if value.dtype.kind not in "fciub":
        raise SourceError(f"an array of type {value.dtype} holds no weights; expected numbers")
    if value.dtype.kind == "f" and value.dtype.itemsize > 8:
        # numpy's long double has no counterpart in torch.
        value = value.astype(np.float64)
    # torch refuses byte-swapped and warns about read-only arrays; neither changes what is read.
    value = value.astype(value.dtype.newbyteorder("="), copy=not value.flags.writeable)
    return torch.from_numpy(value)
