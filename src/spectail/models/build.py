"""From the tensors of any source to its layers: the one road that live modules and files share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from spectail.errors import SourceError
from spectail.models.assembly.combine import combine
from spectail.models.assembly.lora import ScaleOf, join_factors, no_scale
from spectail.models.layout.arrange import as_is
from spectail.models.layout.matrices import Heads, parts_of
from spectail.models.layout.part import Part
from spectail.models.lazy_tensor import LazyTensor, in_memory
from spectail.models.naming.blocks import block_of, kind_of
from spectail.models.naming.names import clean_names, layer_name
from spectail.models.source import NOT_A_WEIGHT, Layer, Source


def build_source(
    label: str,
    fingerprint: str,
    tensors: Iterable[LazyTensor],
    *,
    buffers: Iterable[LazyTensor] = (),
    config: Mapping[str, Any] | None = None,
    scale_of: ScaleOf = no_scale,
    notes: Iterable[str] = (),
) -> Source:
    """Turn the tensors of a model into its layers, in the same order.

    ``buffers`` are buffers of a live module, ``config`` is a transformers configuration, ``scale_of`` gives the
    scaling of LoRA adapters.
    """
    tensors, buffers = _cleaned(list(tensors), list(buffers))
    weights, own_notes = combine(tensors, buffers)
    weights = _once(join_factors(weights, scale_of))
    shapes = {stored.name: stored.shape for stored in (*tensors, *weights)}
    heads = Heads.from_config(config or {})
    layers: dict[str, Layer] = {}
    n_vectors = 0
    for stored in weights:
        if len(stored.shape) < 2 or stored.name.endswith("bias"):
            n_vectors += 1
            continue
        for layer in _layers_of(stored, shapes, heads):
            # A state dict may hold both "a" and "a.weight": the second keeps its full name.
            name = layer.name if layer.name not in layers else f"{layer.name}.weight"
            if name in layers:
                raise SourceError(
                    f"two layers are called {layer.name!r} in {label}; give each parameter a name of its own"
                )
            layers[name] = replace(layer, name=name)
    return Source(label, fingerprint, tuple(layers.values()), n_vectors, (*notes, *own_notes))


def _cleaned(tensors: list[LazyTensor], buffers: list[LazyTensor]) -> tuple[list[LazyTensor], list[LazyTensor]]:
    """Take wrappers off all names together, for pieces of one weight must keep matching."""
    both = [*tensors, *buffers]
    names = clean_names([stored.name for stored in both])
    renamed = [replace(stored, name=name) for stored, name in zip(both, names, strict=True)]
    return renamed[: len(tensors)], renamed[len(tensors) :]


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


def _layers_of(tensor: LazyTensor, shapes: Mapping[str, tuple[int, ...]], heads: Heads) -> Iterable[Layer]:
    """List the layers of one tensor; one that cannot be read keeps a row of its stored shape."""
    problem = tensor.problem
    if not problem and tensor.numel == 0:
        problem = f"empty: its shape is {'x'.join(map(str, tensor.shape))}"
    if problem:
        return [_row_without_values(tensor, problem=problem)]
    return [_layer(tensor, part) for part in parts_of(tensor, shapes, heads)]


def _row_without_values(tensor: LazyTensor, *, problem: str | None = None, no_weight: str | None = None) -> Layer:
    """Describe a tensor that is never read: one that cannot be, or that is no weight matrix."""
    name = layer_name(tensor.name)
    kind = NOT_A_WEIGHT if no_weight else "lora" if tensor.layout == "lora" else kind_of(name)
    rows, cols = tensor.shape[-2:]
    n_matrices = tensor.numel // max(1, rows * cols)
    return Layer(name, kind, block_of(name), rows, cols, n_matrices, tensor.numel, tensor, None, problem, no_weight)


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
        note=tensor.note,
    )


def holding(layer: Layer, values: Tensor) -> Layer:
    """Return the same layer with its values, (n_matrices, rows, cols), taken from ``values`` from now on."""
    part = Part(layer.name, layer.kind, layer.n_matrices, layer.rows, layer.cols, (), as_is)
    return replace(layer, tensor=in_memory(layer.name, values), part=part)
