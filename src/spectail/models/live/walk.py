"""Live modules: their parameters, with what the owning modules say about layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectail.models.assembly.lora import Scale, ScaleOf, no_scale
from spectail.models.build import build_source
from spectail.models.fingerprint import fingerprint_tensors
from spectail.models.layout.matrices import expert_layout
from spectail.models.lazy_tensor import Index, LazyTensor, in_memory, piece_of, unreadable
from spectail.models.live.eval_mode import evaluating
from spectail.models.naming.names import clean_names
from spectail.models.source import Source

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_PLAIN_NORMS = frozenset({"_WeightNorm", "_SpectralNorm"})
"""torch's own parametrisations that ``combine`` computes from the stored pieces, the same way as in a checkpoint."""


def module_source(module: nn.Module, label: str | None = None, *, fingerprint: bool = True) -> Source:
    """List the layers of a live module; values are read when a layer is loaded, and nothing is modified.

    Without ``fingerprint`` no value is read at all, and the source's fingerprint is empty. Buffers are no layers. Tied
    weights appear once. A parametrised weight is the one that the module uses in eval mode. A LoRA target gives its own
    weight under the base model's name, and the adapter's delta as ``<name>.lora``.
    """
    tensors = list(_parameters(module))
    buffers = [in_memory(name, buffer) for name, buffer in module.named_buffers()]
    return build_source(
        label or type(module).__name__,
        fingerprint_tensors((*tensors, *(c for c in buffers if c.is_floating))) if fingerprint else "",
        tensors,
        buffers=buffers,
        config=_config(module),
        scale_of=_scales(module),
    )


def _config(module: nn.Module) -> Mapping[str, Any]:
    """Read the transformers configuration of a model, also inside of wrappers."""
    while not hasattr(module, "config"):
        inner = getattr(module, "module", None) or getattr(module, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return {}
        module = inner
    to_dict = getattr(module.config, "to_dict", None)
    config = to_dict() if callable(to_dict) else module.config
    return config if isinstance(config, Mapping) else {}


def _parameters(module: nn.Module) -> Iterator[LazyTensor]:
    """All parameters once, computed ones in place of what they are computed from."""
    seen: set[int] = set()
    computed: list[str] = []
    for path, owner in module.named_modules():
        prefix = f"{path}." if path else ""
        if problem := _quantised(owner):
            yield problem_row(f"{prefix}weight", owner, problem)
            continue
        for name in _computed_weights(owner):
            computed.append(f"{prefix}parametrizations.{name}.")
            yield _computed(f"{prefix}{name}", owner, name)
        if any(prefix.startswith(done) for done in computed):
            continue
        for name, parameter in owner._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            yield _described(f"{prefix}{name}", parameter, _layout_of(owner, name))


def _described(name: str, parameter: Tensor, layout: str | None) -> LazyTensor:
    """Describe a parameter, or say that it was never materialised."""
    if nn.parameter.is_lazy(parameter):
        problem = "not initialised yet: run one batch through the module first"
        return unreadable(name, (0, 0), "float32", problem, layout=layout)
    return in_memory(name, parameter, layout=layout)


def _layout_of(owner: nn.Module, name: str) -> str | None:
    """What the owning module says about a parameter's layout; None where name and shape have to tell."""
    kind = type(owner)
    owner_type = next((c for c in kind.__mro__ if not c.__name__.startswith("Parametrized")), kind)
    if hasattr(owner, "is_transposed") and hasattr(owner, "is_concatenated"):
        return expert_layout(is_transposed=bool(owner.is_transposed), is_concatenated=bool(owner.is_concatenated))
    if not name.startswith("weight"):
        return None
    if isinstance(owner, _CONVOLUTIONS):
        return "conv"
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if isinstance(owner, nn.Linear):
        return "linear"
    if owner_type.__name__ == "Conv1D" and owner_type.__module__.startswith("transformers."):
        return "conv1d"
    return None


def _quantised(owner: nn.Module) -> str | None:
    """Why a torch-quantised module has no readable parameter, None for every other module."""
    if hasattr(owner, "_packed_params") and callable(getattr(owner, "weight", None)):
        return f"packed integers of {type(owner).__module__}.{type(owner).__name__}: dequantise it first"
    return None


def problem_row(name: str, owner: nn.Module, problem: str) -> LazyTensor:
    """Describe a weight that cannot be read, by the sizes that its module states."""
    shape = (
        getattr(owner, "out_features", getattr(owner, "out_channels", 1)),
        getattr(owner, "in_features", getattr(owner, "in_channels", 1)),
    )
    return unreadable(name, shape, "quint8", problem)


def _computed_weights(owner: nn.Module) -> list[str]:
    """Names of the parametrised weights that only the module itself can compute."""
    if not parametrize.is_parametrized(owner):
        return []
    lists: Mapping[str, Any] = owner.parametrizations  # type: ignore[assignment]
    return [name for name, steps in lists.items() if len(steps) != 1 or type(steps[0]).__name__ not in _PLAIN_NORMS]


def _computed(name: str, owner: nn.Module, attribute: str) -> LazyTensor:
    """Describe a weight that the module computes on access."""
    value = _compute(owner, attribute, ())
    described = in_memory(name, value, layout=_layout_of(owner, attribute))
    read = partial(_compute, owner, attribute)
    parameters = tuple(owner.parametrizations[attribute].parameters())  # type: ignore[index, union-attr]
    return replace(described, read=read, identity=None, memory=None, parameters=parameters)


def _compute(owner: nn.Module, attribute: str, index: Index) -> Tensor:
    """Compute a parametrised weight in eval mode, where computing it changes no state."""
    with torch.no_grad(), evaluating(owner.parametrizations):  # type: ignore[arg-type]
        return piece_of(getattr(owner, attribute).detach(), index)


def _scales(module: nn.Module) -> ScaleOf:
    """Read the scaling of every peft layer, by its name in the base model."""
    found: dict[tuple[str, str], Scale] = {}
    paths = []
    for path, owner in module.named_modules():
        scaling = getattr(owner, "scaling", None)
        if isinstance(scaling, dict) and hasattr(owner, "lora_A"):
            ranks = getattr(owner, "r", {})
            for adapter, factor in scaling.items():
                paths.append((path, adapter, Scale(float(factor), ranks.get(adapter))))
    if not paths:
        return no_scale
    # A factor's name rides along, for a peft prefix is only taken off where there are factors.
    names = clean_names([f"{path}.lora_A.{adapter}.weight" for path, adapter, _ in paths])
    for name, (_, adapter, scale) in zip(names, paths, strict=True):
        found[name.partition(".lora_A.")[0], adapter] = scale
    return partial(_look_up, found)


def _look_up(found: Mapping[tuple[str, str], Scale], target: str, adapter: str) -> Scale:
    """Find the scale of one target, 1 where the module states none."""
    return found.get((target, adapter), Scale())
