"""torch.save files (.pt, .bin, .pth): loaded with ``weights_only``, so that no code of the file runs."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectail.errors import SourceError
from spectail.models.lazy_tensor import LazyTensor, in_memory

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
)
_NO_MODEL = ("optim", "sched", "scaler", "rng", "args", "config", "hyper", "callbacks", "loops")


def read_pickles(paths: Iterable[Path]) -> list[LazyTensor]:
    """Describe the tensors of one or several files, in the files' order."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        state = find_state(_load(path))
        if not state:
            raise SourceError(f"{path} holds no tensors; expected the state dict of a model")
        for name, tensor in state.items():
            if name in tensors:
                raise SourceError(
                    f"tensor {name!r} is in {path.name} and in an earlier shard; each tensor may be in one shard only"
                )
            tensors[name] = tensor
    return [in_memory(name, tensor) for name, tensor in tensors.items()]


def find_state(value: object, depth: int = 4) -> dict[str, Tensor]:
    """Find the state dict in what a training script saved: under a usual key, else all dicts of tensors, by path."""
    if isinstance(value, Tensor | np.ndarray):
        return {"weight": as_tensor(value)}
    if not isinstance(value, Mapping) or depth == 0:
        return {}
    own = {str(name): as_tensor(t) for name, t in value.items() if isinstance(t, Tensor | np.ndarray)}
    if any(tensor.ndim >= 2 for tensor in own.values()):
        return own | _inner(value, depth, _NO_MODEL)
    for key in _MODEL_KEYS:
        if isinstance(value.get(key), Mapping) and (state := find_state(value[key], depth - 1)):
            return state
    return _inner(value, depth, _NO_MODEL) or own


def _inner(value: Mapping[Any, Any], depth: int, skipped: tuple[str, ...]) -> dict[str, Tensor]:
    """Collect the state dicts of nested dicts, the names prefixed with their keys."""
    found = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and not str(key).lower().startswith(skipped):
            found.update({f"{key}.{name}": tensor for name, tensor in find_state(inner, depth - 1).items()})
    return found


def as_tensor(value: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """View an array as a tensor; types that torch lacks are converted."""
    if isinstance(value, Tensor):
        return value
    if value.dtype.kind not in "fciub":
        raise SourceError(f"an array of type {value.dtype} holds no weights; expected numbers")
    if value.dtype.kind == "f" and value.dtype.itemsize > 8:
        value = value.astype(np.float64)
    # torch refuses byte-swapped and warns about read-only arrays; neither changes what is read.
    value = value.astype(value.dtype.newbyteorder("="), copy=not value.flags.writeable)
    return torch.from_numpy(value)


def _load(path: Path) -> object:
    """Load a file with torch, memory-mapped where its format allows."""
    if path.stat().st_size == 0:
        raise SourceError(f"{path} is empty; expected a file written by torch.save")
    try:
        zipped = zipfile.is_zipfile(path)
        # torch warns about foreign pickles before it refuses them; the refusal says enough.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged pickle may fail in any way
        raise SourceError(_why(path, error)) from None


def _why(path: Path, error: Exception) -> str:
    """Say why torch could not or would not load a file."""
    if "TorchScript" in str(error):
        return f"{path} is a TorchScript archive, which holds code; save the module's state_dict() instead"
    with path.open("rb") as file:
        start = file.read(2)
    refused = isinstance(error, pickle.UnpicklingError)
    foreign = start[:1] == b"\x80" and start[1:] != b"\x02"
    if refused and (foreign or re.search(r"GLOBAL|global|REDUCE|class|[Uu]nsafe", str(error))):
        return (
            f"{path} holds Python objects besides tensors (a whole module, or code that would run on loading), "
            "which are never loaded; save the module's state_dict() instead"
        )
    return f"{path} is not a readable file of torch.save: it is truncated, damaged or of another format"
