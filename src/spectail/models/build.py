"""From the tensors of any source to its layers: the one road that live modules and files share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from spectail.errors import SourceError
from spectail.models.assembly.adapters.join import join_adapters
from spectail.models.assembly.adapters.known import NOTHING_KNOWN, Known
from spectail.models.assembly.placeholders import with_placeholders
from spectail.models.assembly.recipes import assemble
from spectail.models.layout.arrange import as_is
from spectail.models.layout.part import Part
from spectail.models.layout.rules import parts_of
from spectail.models.lazy_tensor import LazyTensor, in_memory
from spectail.models.naming.blocks import block_of, kind_of
from spectail.models.naming.names import clean_names, layer_name
from spectail.models.naming.roles import are_weights_named, no_matrix
from spectail.models.source import NOT_A_WEIGHT, Layer, Source


def build_source(
    label: str,
    fingerprint: str,
    tensors: Iterable[LazyTensor],
    *,
    config: Mapping[str, Any] | None = None,
    adapters: Known = NOTHING_KNOWN,
    notes: Iterable[str] = (),
) -> Source:
    """Turn the tensors of a model into its layers, in the same order.

    ``config`` is a transformers configuration, ``adapters`` is what the
    source knows about its adapters.
    """
    tensors = with_placeholders(_cleaned(list(tensors)))
    weights = assemble(tensors, config)
    weights, adapter_notes = join_adapters(
        weights, {stored.name: stored for stored in tensors}, adapters
    )
    weights = _once(weights)
    shapes = {stored.name: stored.shape for stored in (*tensors, *weights)}
    among_weights = are_weights_named(shapes)
    layers: dict[str, Layer] = {}
    n_vectors = 0
    for stored in weights:
        if len(stored.shape) < 2 or stored.name.endswith("bias"):
            n_vectors += 1
            continue
        for layer in _layers_of(stored, shapes, config or {}, among_weights):
            # A state dict may hold both "a" and "a.weight": the second keeps its full name.
            name = layer.name if layer.name not in layers else f"{layer.name}.weight"
            if name in layers:
                raise SourceError(
                    f"two layers are called {layer.name!r} in {label}; give each parameter a name "
                    "of its own"
                )
            layers[name] = replace(layer, name=name)
    return Source(label, fingerprint, tuple(layers.values()), n_vectors, (*notes, *adapter_notes))


def _cleaned(tensors: list[LazyTensor]) -> list[LazyTensor]:
    """Take wrappers off all names together, for pieces of one weight must keep matching."""
    names = clean_names([stored.name for stored in tensors])
    return [replace(stored, name=name) for stored, name in zip(tensors, names, strict=True)]


def _once(tensors: Iterable[LazyTensor]) -> list[LazyTensor]:
    """Keep tied weights once, under the first of their names."""
    seen = set()
    result = []
    for stored in tensors:
        if stored.identity is not None:
            if stored.identity in seen:
                continue
            seen.add(stored.identity)
        result.append(stored)
    return result


def _layers_of(
    tensor: LazyTensor,
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    among_weights: bool,
) -> Iterable[Layer]:
    """List the layers of one tensor; one that cannot be read, or is no weight, keeps a row of its stored shape."""
    if reason := _replaced(tensor.name, shapes) or _no_weight(tensor, among_weights):
        return [_row_without_values(tensor, no_weight=f"no weight matrix: {reason}")]
    problem = tensor.problem
    if not problem and tensor.numel == 0:
        problem = f"empty: its shape is {'x'.join(map(str, tensor.shape))}"
    if problem:
        return [_row_without_values(tensor, problem=problem)]
    return [_layer(tensor, part) for part in parts_of(tensor, shapes, config)]


def _replaced(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Say of a module that peft keeps for later that the model computes with the copy that an adapter saves whole."""
    if ".original_module." in name and name.replace(".original_module.", ".", 1) in shapes:
        return "a module that an adapter replaces, and that the model does not use"
    return None


def _no_weight(tensor: LazyTensor, among_weights: bool) -> str | None:
    """Say why a tensor is no weight matrix, as its owner or else its name tells; None where it is one."""
    if tensor.layout == "lora" or (tensor.problem and not tensor.is_floating):
        return None
    if tensor.no_weight is not None:
        return tensor.no_weight or None
    return no_matrix(
        tensor.name, tensor.shape, is_complex=tensor.is_complex, among_weights=among_weights
    )


def _row_without_values(
    tensor: LazyTensor, *, problem: str | None = None, no_weight: str | None = None
) -> Layer:
    """Describe a tensor that is never read: one that cannot be, or that is no weight matrix."""
    name = layer_name(tensor.name)
    kind = NOT_A_WEIGHT if no_weight else "lora" if tensor.layout == "lora" else kind_of(name)
    rows, cols = tensor.shape[-2:]
    n_matrices = tensor.numel // max(1, rows * cols)
    return Layer(
        name,
        kind,
        block_of(name),
        rows,
        cols,
        n_matrices,
        tensor.numel,
        tensor,
        None,
        problem,
        no_weight,
    )


def _layer(tensor: LazyTensor, part: Part) -> Layer:
    """Describe one readable layer."""
    return Layer(
        name=part.name,
        kind=part.kind,
        block=block_of(part.name),
        rows=part.rows,
        cols=part.cols,
        n_matrices=part.n_matrices,
        numel=part.n_matrices * part.rows * part.cols,
        tensor=tensor,
        part=part,
        note="; ".join(filter(None, (tensor.note, part.note))),
    )


def holding(layer: Layer, values: Tensor) -> Layer:
    """Return the same layer with its values, (n_matrices, rows, cols), taken from ``values`` from now on."""
    part = Part(layer.name, layer.kind, layer.n_matrices, layer.rows, layer.cols, (), as_is)
    return replace(layer, tensor=in_memory(layer.name, values), part=part)
