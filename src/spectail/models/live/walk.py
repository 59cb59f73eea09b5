"""Walk through a live module: list its parameters, with the layouts that their owners imply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectail.models.build import build_source
from spectail.models.formats.fingerprint import fingerprint_tensors
from spectail.models.layout.experts import expert_layout
from spectail.models.lazy_tensor import Index, LazyTensor, in_memory, piece_of, unreadable
from spectail.models.live.adapters import adapters_of, among
from spectail.models.live.eval_mode import evaluating
from spectail.models.live.offloaded import elsewhere, homes_of
from spectail.models.live.ownership import no_matrix_of
from spectail.models.live.quantised import buffers_of, module_weights
from spectail.models.live.saved_names import saved_names
from spectail.models.naming.names import clean_names, lightning_names
from spectail.models.naming.not_weights import are_weights_named
from spectail.models.source import Source
from spectail.models.tied import tied_modules

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_PLAIN_NORMS = frozenset({"_WeightNorm", "_SpectralNorm"})
"""torch's own parametrisations that the recipes compute from the stored pieces, as in a checkpoint.
"""


def module_source(
    module: nn.Module, label: str | None = None, *, fingerprint: bool = True
) -> Source:
    """List the layers of a live module; values are read later and nothing is modified.

    Without ``fingerprint`` no value is read at all, and the source's fingerprint is empty. Buffers
    are not layers. Tied weights appear once. A parametrised weight is the one that the module uses
    in eval mode. A LoRA target gives its own weight under the base model's name, and the adapter's
    change as ``<name>.lora``.
    """
    adapters, config = adapters_of(module), config_of(module)
    stored = list(_parameters(module))
    # Small integer buffers are counters, such as a norm's
    # number of batches. They change without the weights.
    hashed = (s for s in stored if not s.buffer or s.is_floating or len(s.shape) > 1)
    source = build_source(
        label or type(module).__name__,
        fingerprint_tensors(hashed) if fingerprint else "",
        _of_network(module, among(adapters, stored)),
        config=config,
        adapters=adapters.known,
        notes=adapters.notes,
    )
    saved = saved_names(module, source.layers, config)
    return replace(
        source,
        layers=tuple(replace(layer, saved_as=saved.get(layer.name, "")) for layer in source.layers),
        tied=tied_modules(source.layers, _named(module)),
    )


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of all modules under their clean names, a shared one under each."""
    found = {
        f"{path}.{name}" if path else name: parameter
        for path, owner in module.named_modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None
    }
    names = clean_names(list(found))
    if _is_lightning(module):
        names = lightning_names(names)
    return zip(names, found.values(), strict=True)


def _of_network(module: nn.Module, tensors: list[LazyTensor]) -> list[LazyTensor]:
    """Name the tensors of a LightningModule as its network does, as for its checkpoints."""
    if not _is_lightning(module):
        return tensors
    names = lightning_names([stored.name for stored in tensors])
    return [replace(stored, name=name) for stored, name in zip(tensors, names, strict=True)]


def _is_lightning(module: nn.Module) -> bool:
    """Whether a module is a LightningModule, without importing Lightning."""
    return any(base.__name__ == "LightningModule" for base in type(module).__mro__)


def config_of(module: nn.Module) -> Mapping[str, Any]:
    """Return the transformers configuration of a model, also if it is in wrappers."""
    while not hasattr(module, "config"):
        # Not ``or``: the truth value of a compiled module is its length, which may not exist.
        inner = getattr(module, "module", getattr(module, "_orig_mod", None))
        if not isinstance(inner, nn.Module):
            return {}
        module = inner
    to_dict = getattr(module.config, "to_dict", None)
    config = to_dict() if callable(to_dict) else module.config
    return config if isinstance(config, Mapping) else {}


def _parameters(module: nn.Module) -> Iterator[LazyTensor]:
    """Yield all parameters and buffers once, with computed weights in place of their pieces."""
    seen: set[int] = set()
    computed: list[str] = []
    among_weights = are_weights_named(name for name, _ in module.named_parameters())
    homes = homes_of(module)
    # In the order of ``named_modules``, so that the layers are in the model's own order.
    for path, owner in module.named_modules():
        prefix = f"{path}." if path else ""
        if weights := module_weights(prefix, owner):
            yield from weights
            continue
        for name in _computed_weights(owner):
            computed.append(f"{prefix}parametrizations.{name}.")
            yield _computed(f"{prefix}{name}", owner, name)
        # The pieces of a computed weight, which was described at its owner.
        if any(prefix.startswith(done) for done in computed):
            continue
        for name, parameter in owner._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            full, layout = f"{prefix}{name}", _layout_of(owner, name)
            described = elsewhere(full, parameter, layout, homes) or _described(
                full, parameter, layout
            )
            no_weight = no_matrix_of(owner, name, described, among_weights=among_weights)
            yield replace(described, no_weight=no_weight)
        yield from buffers_of(prefix, owner, seen)


def _described(name: str, parameter: Tensor, layout: str | None) -> LazyTensor:
    """Describe a parameter, or say that it was never initialised."""
    if nn.parameter.is_lazy(parameter):
        problem = "not initialised yet: run one batch through the module first"
        return unreadable(name, (0, 0), "float32", problem, layout=layout)
    return in_memory(name, parameter, layout=layout)


def _layout_of(owner: nn.Module, name: str) -> str | None:
    """Return the layout that a parameter's owner implies; None if only name and shape tell."""
    kind = type(owner)
    # Parametrising a module gives it a new class,
    # ``ParametrizedLinear``, that inherits from its own.
    owner_type = next((c for c in kind.__mro__ if not c.__name__.startswith("Parametrized")), kind)
    if hasattr(owner, "is_transposed") and hasattr(owner, "is_concatenated"):
        return expert_layout(
            is_transposed=bool(owner.is_transposed), is_concatenated=bool(owner.is_concatenated)
        )
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


def _computed_weights(owner: nn.Module) -> list[str]:
    """List the names of the parametrised weights that only the module itself can compute."""
    if not parametrize.is_parametrized(owner):
        return []
    # Steps of parametrisations can be combined; the recipes know single ones of torch only.
    lists: Mapping[str, Any] = owner.parametrizations  # type: ignore[assignment]
    return [
        name
        for name, steps in lists.items()
        if len(steps) != 1 or type(steps[0]).__name__ not in _PLAIN_NORMS
    ]


def _computed(name: str, owner: nn.Module, attribute: str) -> LazyTensor:
    """Describe a weight that the module computes on access."""
    value = _compute(owner, attribute, ())
    described = in_memory(name, value, layout=_layout_of(owner, attribute))
    read = partial(_compute, owner, attribute)
    steps: Any = owner.parametrizations[attribute]  # type: ignore[index]
    parameters = tuple(steps.parameters())
    no_weight = no_matrix_of(owner, attribute, described)
    return replace(
        described, read=read, identity=None, memory=None, parameters=parameters, no_weight=no_weight
    )


def _compute(owner: nn.Module, attribute: str, index: Index) -> Tensor:
    """Compute a parametrised weight in eval mode, in which computing it changes no state."""
    with torch.no_grad(), evaluating(owner.parametrizations):  # type: ignore[arg-type]
        return piece_of(getattr(owner, attribute).detach(), index)
