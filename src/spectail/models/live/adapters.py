"""Adapters of a live module (LoRA and its like): the change that each makes to a weight.

For plain LoRA the change is computed from the two factors with the scale that the module states.
For every other form the library itself computes it: the adapter is merged into a copy of its layer
in float64, and the change is the merged weight minus the base weight.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spectail.basics.texts import type_and_line
from spectail.errors import SourceError
from spectail.models.assembly.adapters.experts import expert_changes
from spectail.models.assembly.adapters.known import Known, Scale
from spectail.models.assembly.adapters.spelling import VECTORS
from spectail.models.lazy_tensor import Index, LazyTensor, in_memory, piece_of, unreadable
from spectail.models.naming.names import clean_names


@dataclass(frozen=True)
class LiveAdapters:
    """The adapters of a live module."""

    rows: Mapping[str, list[LazyTensor]] = field(default_factory=dict)
    """The changes that the library computes, by the path of the adapted module."""
    hidden: frozenset[int] = frozenset()
    """Identities of the parameters that these changes are computed from. They are not layers
    themselves."""
    hidden_paths: tuple[str, ...] = ()
    """Prefixes of the names of all tensors, buffers included, that these changes are computed from.
    """
    known: Known = field(default_factory=Known)
    """Scales of the adapters whose factors are read like any other parameter."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, one sentence each."""


def adapters_of(module: nn.Module) -> LiveAdapters:
    """Find the adapters of a live module; no change is computed before its layer is read."""
    rows: dict[str, list[LazyTensor]] = {}
    hidden: set[int] = set()
    hidden_paths: list[str] = []
    scales: list[tuple[str, str, Scale]] = []
    vectors = 0
    # peft may wrap one layer several times. Adapters are counted over all its wrappers: a row needs
    # the adapter's name only if there are several.
    count = Counter(
        _outer(path)
        for path, owner in module.named_modules()
        if _is_peft_layer(owner)
        for _ in _adapters_of(owner)
    )
    for path, owner in module.named_modules():
        scales += ((path, adapter, scale) for adapter, scale in _scales_of(owner))
        # The adapter of a tied module is the one of its partner, which has a row already.
        if not _is_peft_layer(owner) or getattr(owner, "tied_adapter", None) is not None:
            continue
        for adapter in sorted(_adapters_of(owner)):
            if _is_plain_lora(owner, adapter):
                continue
            pieces = _pieces_of(owner, adapter)
            if VECTORS & set(owner.adapter_layer_names) or _weight_of(owner).ndim < 2:
                vectors += 1
                continue
            hidden.update(id(piece) for piece in pieces)
            hidden_paths += (f"{path}.{name}.{adapter}." for name in _containers(owner))
            rows.setdefault(path, []).extend(
                _rows(path, owner, adapter, alone=_is_alone(owner, path, count))
            )
    notes = (_VECTORS.format(vectors),) if vectors else ()
    return LiveAdapters(
        rows, frozenset(hidden), tuple(hidden_paths), Known(_scale_of(scales)), notes
    )


def _outer(path: str) -> str:
    """Return the path of a module without the levels that peft inserts for nested adapters."""
    return path.replace(".base_layer", "")


def _is_alone(owner: Any, path: str, count: Mapping[str, int]) -> bool:
    """Whether a weight has one adapter only; adapters of fused experts get unique names anyway."""
    return len(_adapters_of(owner)) == 1 and (
        hasattr(owner, "parameter_name") or count[_outer(path)] == 1
    )


_VECTORS = (
    "{} adapters are vectors that scale or shift outputs; the rows are of the weights without them"
)


def _is_peft_layer(owner: nn.Module) -> bool:
    """Whether a module is a layer that peft wraps around another."""
    return bool(getattr(owner, "adapter_layer_names", ())) and callable(
        getattr(owner, "get_base_layer", None)
    )


def _adapters_of(owner: Any) -> set[str]:
    """Return the names of the adapters that a peft layer holds."""
    containers = (getattr(owner, name, None) for name in owner.adapter_layer_names)
    return {
        str(key) for c in containers if isinstance(c, nn.ModuleDict | nn.ParameterDict) for key in c
    }


def _is_plain_lora(owner: Any, adapter: str) -> bool:
    """Whether a change is just scale x B A: no DoRA, AdaLoRA or other variant, no experts."""
    names = owner.adapter_layer_names
    if "lora_A" not in names or "lora_E" in names or hasattr(owner, "parameter_name"):
        return False
    return adapter not in getattr(owner, "lora_variant", {}) and not getattr(
        owner, "use_dora", {}
    ).get(adapter)


def _containers(owner: Any) -> tuple[str, ...]:
    """Return the attributes under which a peft layer keeps the tensors of its adapters."""
    return (*owner.adapter_layer_names, *getattr(owner, "other_param_names", ()))


def _pieces_of(owner: Any, adapter: str) -> list[Tensor]:
    """List the parameters of one adapter of one layer."""
    found: list[Tensor] = []
    for name in _containers(owner):
        container = getattr(owner, name, None)
        if isinstance(container, nn.ModuleDict | nn.ParameterDict) and adapter in container:
            piece: Any = container[adapter]
            found += piece.parameters() if isinstance(piece, nn.Module) else [piece]
    return [piece for piece in found if isinstance(piece, nn.Parameter)]


def _weight_of(owner: Any) -> Tensor:
    """Return the parameter that a peft layer changes, or an empty tensor if it has none."""
    weight = getattr(owner.get_base_layer(), getattr(owner, "parameter_name", "weight"), None)
    return weight if isinstance(weight, Tensor) else torch.empty(0, 0)


def _rows(path: str, owner: Any, adapter: str, *, alone: bool) -> Iterator[LazyTensor]:
    """Describe the change that one adapter makes; a fused parameter gives one row per expert."""
    parameter = getattr(owner, "parameter_name", None)
    ending = "lora" if alone else f"lora.{adapter}"
    note = _state_of(owner, adapter)
    if parameter is not None:
        target = ".".join(filter(None, (_outer(path), "" if parameter == "weight" else parameter)))
        down, up = (
            in_memory(name, getattr(owner, name)[adapter].weight) for name in ("lora_A", "lora_B")
        )
        factor = float(owner.scaling[adapter])
        yield from expert_changes(
            target, ending, down, up, int(owner.num_experts), factor=factor, note=note
        )
        return
    name = ".".join(filter(None, (_outer(path).removesuffix(".token_adapter"), ending)))
    weight = _weight_of(owner)
    shape = tuple(weight.shape)
    # transformers' Conv1D (GPT-2) stores its weight as (in, out).
    turned = len(shape) == 2 and type(owner.get_base_layer()).__name__ == "Conv1D"
    problem = _why_not(weight)
    if problem:
        yield unreadable(name, shape[::-1] if turned else shape, "float64", problem, layout="lora")
        return
    read = partial(_read_change, owner, adapter, turned)
    parameters = tuple(_pieces_of(owner, adapter))
    yield LazyTensor(
        name,
        shape[::-1] if turned else shape,
        "float64",
        read,
        "lora",
        note=note,
        parameters=parameters,
    )


def _why_not(weight: Tensor) -> str | None:
    """Return why an adapter cannot be merged into a copy of its layer; None if it can."""
    if weight.is_meta:
        return (
            "the change depends on the base weight, which is not in memory: "
            "load the model without offloading"
        )
    if not weight.is_floating_point() or weight.numel() == 0:
        return (
            f"the change depends on the base weight, which is stored as {weight.dtype}: "
            "dequantise the model first"
        )
    return None


def _state_of(owner: Any, adapter: str) -> str:
    """Return a remark if an adapter is merged or not active; else an empty text."""
    if adapter in getattr(owner, "merged_adapters", ()):
        return f"adapter {adapter} is merged: the row of its weight has the change in it too"
    if getattr(owner, "disable_adapters", False) or adapter not in getattr(
        owner, "active_adapters", (adapter,)
    ):
        return f"adapter {adapter} is not active: the model does not use it now"
    return ""


def _read_change(owner: nn.Module, adapter: str, turned: bool, index: Index) -> Tensor:
    """Compute an adapter's change in a copy of its layer: merged weight minus base weight."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # A copy, since merging changes the layer in place. In float64, since the change is a small
        # difference of two large weights: in bfloat16 it would be mostly rounding.
        layer: Any = copy.deepcopy(owner).double().eval()
        try:
            if layer.merged_adapters:
                # An adapter that is merged already would count as part of the base weight.
                layer.unmerge()
            before = _weight_of(layer).detach().clone()
            layer.merge(adapter_names=[adapter])
        except Exception as error:  # noqa: BLE001 - the library may refuse in any way
            raise SourceError(
                f"{type(owner).__name__} cannot merge adapter {adapter!r}: {type_and_line(error)}"
            ) from None
        change = _weight_of(layer).detach().to(torch.float64) - before
    return piece_of(change.T if turned else change, index)


def _scales_of(owner: nn.Module) -> Iterator[tuple[str, Scale]]:
    """List the scales that a module states for its LoRA factors, with the names of the adapters.

    The name is empty for libraries that allow one adapter only (loralib, torchtune).
    """
    names = {*owner._modules, *owner._parameters}
    if not names & {"lora_A", "lora_a", "lora_down", "lora_up", "down"}:
        return
    scaling, ranks = getattr(owner, "scaling", None), getattr(owner, "r", {})
    if isinstance(scaling, dict):
        for adapter, factor in scaling.items():
            note = _state_of(owner, adapter) if _is_peft_layer(owner) else ""
            yield (
                adapter,
                Scale(float(factor), ranks.get(adapter) if isinstance(ranks, dict) else None, note),
            )
    elif isinstance(scaling, int | float):  # loralib
        yield "", Scale(float(scaling))
    else:  # torchtune; diffusers before peft
        alpha, rank = (
            getattr(owner, "alpha", getattr(owner, "network_alpha", None)),
            getattr(owner, "rank", None),
        )
        if isinstance(alpha, int | float) and isinstance(rank, int) and rank > 0:
            # The usual scale of LoRA (arXiv 2106.09685, section 4.1).
            yield "", Scale(alpha / rank)


def _scale_of(scales: list[tuple[str, str, Scale]]) -> Any:
    """Return a function that looks a scale up by the name its module has in the base model."""
    # The names are those of factors, since peft's prefix is removed only if there are factors.
    names = clean_names([f"{path}.lora_A.{adapter}.weight" for path, adapter, _ in scales])
    cleaned = zip(names, scales, strict=True)
    found = {
        (name.rpartition(".lora_A.")[0], adapter): scale for name, (_, adapter, scale) in cleaned
    }
    return partial(_look_up, found)


def _look_up(found: Mapping[tuple[str, str], Scale], target: str, adapter: str) -> Scale:
    """Return the scale of one target, or an unknown one if the module states none."""
    return found.get((target, adapter), Scale())


def among(adapters: LiveAdapters, tensors: Iterable[LazyTensor]) -> list[LazyTensor]:
    """Insert each change after its module's parameters, and drop what it is computed from."""
    kept = [
        s
        for s in tensors
        if not any(id(parameter) in adapters.hidden for parameter in s.parameters)
        and not f"{s.name}.".startswith(adapters.hidden_paths)
    ]
    # For every path and each of its parents: the position of the last tensor below it.
    last: dict[str, int] = {}
    for position, stored in enumerate(kept):
        pieces = stored.name.split(".")
        last.update((".".join(pieces[:length]), position) for length in range(len(pieces)))
    behind: dict[int, list[LazyTensor]] = {}
    for path, rows in adapters.rows.items():
        # A module whose own parameters were all dropped takes the place of its parent.
        while path not in last and path:
            path = path.rpartition(".")[0]
        behind.setdefault(last.get(path, len(kept) - 1), []).extend(rows)
    return [
        row for position, stored in enumerate(kept) for row in (stored, *behind.get(position, ()))
    ]
