"""Parameters whose values lie elsewhere: offloaded by accelerate, or split by ZeRO-3 or FSDP."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from spectail.models.lazy_tensor import (
    Index,
    LazyTensor,
    dtype_name,
    in_memory,
    piece_of,
    unreadable,
)

ZERO3_LIVE = (
    "partitioned by ZeRO-3: this process holds a part only; save a gathered checkpoint "
    "(stage3_gather_16bit_weights_on_model_save, or zero_to_fp32.py) and analyse that"
)
"""Why a parameter of a live ZeRO-3 model is not read."""
FSDP_LIVE = (
    "split over processes by FSDP: this process holds a part only; analyse inside of "
    "FullyShardedDataParallel.summon_full_params(model), "
    "or save a full state dict (StateDictType.FULL_STATE_DICT)"
)
"""Why a parameter of a live FSDP model is not read."""
SAMPLE = 2**16
"""Number of entries that are compared to decide whether two weights on disk are tied."""


@dataclass(frozen=True)
class Home:
    """The place where accelerate keeps the values of a parameter that is off the device."""

    values: Mapping[str, Tensor]
    """A mapping from names to tensors, which are in memory or are read from disk at each access."""
    name: str
    """The parameter's name in ``values``."""
    twins: tuple[Tensor, ...] | None
    """Parameters in memory that it may be tied to; None if it cannot be tied to any parameter."""


@dataclass(frozen=True)
class Split:
    """A parameter of which every process holds a part."""

    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    problem: str
    """Why it is not read."""


Homes: TypeAlias = "Mapping[int, Home | Split]"
"""Homes and splits by the identity (``id``) of the parameter."""


def homes_of(module: nn.Module) -> Homes:
    """Find the parameters of a module whose values lie elsewhere; nothing is read or moved."""
    return {
        **_offloaded_by_accelerate(module),
        **_split_by_deepspeed(module),
        **_split_by_fsdp(module),
    }


def _split_by_deepspeed(module: nn.Module) -> dict[int, Split]:
    """Find the parameters that ZeRO-3 has partitioned and that are not gathered at the moment."""
    # DeepSpeed keeps the shape of the whole parameter in
    # ``ds_shape`` and empties the parameter itself.
    whole = {id(p): (p, getattr(p, "ds_shape", None)) for p in module.parameters()}
    return {
        key: Split(tuple(shape), ZERO3_LIVE)
        for key, (p, shape) in whole.items()
        if shape is not None and tuple(p.shape) != tuple(shape)
    }


def _split_by_fsdp(module: nn.Module) -> dict[int, Split]:
    """Find the parameters that FSDP shows as parts of its flat parameter (``use_orig_params``)."""
    found: dict[int, Split] = {}
    for owner in module.modules():
        flat = getattr(getattr(owner, "_handle", None), "flat_param", None)
        for parameter, shape in zip(
            getattr(flat, "_params", None) or (), getattr(flat, "_shapes", ()), strict=False
        ):
            if tuple(parameter.shape) != tuple(shape):
                found[id(parameter)] = Split(tuple(shape), FSDP_LIVE)
    return found


def _offloaded_by_accelerate(module: nn.Module) -> dict[int, Home]:
    """Find the parameters that accelerate has taken off the device."""
    found: list[tuple[nn.Module, Tensor, Mapping[str, Tensor], str]] = []
    for owner in module.modules():
        for hook in _hooks_of(owner):
            values = getattr(hook, "weights_map", None)
            if values is None or not getattr(hook, "offload", False):
                continue
            whole = bool(getattr(hook, "place_submodules", False))
            found += (
                (owner, p, values, n) for n, p in owner.named_parameters(recurse=whole) if p.is_meta
            )
    if not found:
        return {}
    parameters = {id(p): p for p in module.parameters()}
    shapes = Counter(tuple(p.shape) for p in parameters.values())
    # Offloading separates tied weights, so only equal values reveal them. Comparing values costs a
    # read from disk; it is done only for shapes of embeddings, since nothing else is tied.
    embeddings = {tuple(o.weight.shape) for o in module.modules() if isinstance(o, nn.Embedding)}
    here = [p for p in parameters.values() if not p.is_meta]
    return {
        id(p): Home(
            values,
            name,
            tuple(t for t in here if t.shape == p.shape)
            if _may_be_tied(p, shapes, embeddings)
            else None,
        )
        for _, p, values, name in found
    }


def _may_be_tied(
    parameter: Tensor, shapes: Mapping[tuple[int, ...], int], embeddings: set[tuple[int, ...]]
) -> bool:
    """Whether another parameter has the same shape, and one of them is an embedding."""
    shape = tuple(parameter.shape)
    return shapes[shape] > 1 and shape in embeddings


def _hooks_of(owner: nn.Module) -> Iterator[Any]:
    """Yield the hooks that accelerate has put on a module, those in sequences included."""
    hook = getattr(owner, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))


def elsewhere(name: str, parameter: Tensor, layout: str | None, homes: Homes) -> LazyTensor | None:
    """Describe a parameter whose values lie elsewhere; return None for every other parameter."""
    home = homes.get(id(parameter))
    if isinstance(home, Split):
        return unreadable(
            name, home.shape, dtype_name(parameter.dtype), home.problem, layout=layout
        )
    return None if home is None else _offloaded(name, parameter, layout, home)


def _offloaded(name: str, parameter: Tensor, layout: str | None, home: Home) -> LazyTensor:
    """Describe a parameter that accelerate keeps in main memory or on disk."""
    return LazyTensor(
        name,
        tuple(parameter.shape),
        dtype_name(parameter.dtype),
        partial(_read_home, home.values, home.name),
        layout,
        identity=_identity(home),
        parameters=(parameter,) if isinstance(parameter, nn.Parameter) else (),
    )


def _read_home(values: Mapping[str, Tensor], name: str, index: Index) -> Tensor:
    """Read the indexed piece of an offloaded weight."""
    return piece_of(values[name].detach(), index)


def _identity(home: Home) -> Hashable:
    """Return a key that tied offloaded weights share: their memory or a hash of values."""
    if home.twins is None:
        return (id(home.values), home.name)
    value, again = home.values[home.name], home.values[home.name]
    # Two look-ups that give the same object: the weight is in memory, not read from disk each time.
    if value.data_ptr() == again.data_ptr() and value is again:
        return in_memory(home.name, value).identity
    sample = _sample_of(value)
    twin = next((t for t in home.twins if t.dtype == value.dtype and _sample_of(t) == sample), None)
    return (tuple(value.shape), sample) if twin is None else in_memory(home.name, twin).identity


def _sample_of(tensor: Tensor) -> str:
    """Return a hash of a regular sample of a tensor's values."""
    flat = tensor.detach().reshape(-1)
    # The step is odd: an even one would visit only some columns of a matrix with 2^k columns.
    flat = flat[:: (flat.numel() // SAMPLE + 1) | 1].contiguous().cpu().view(torch.uint8)
    return hashlib.sha256(flat.numpy().tobytes()).hexdigest()
