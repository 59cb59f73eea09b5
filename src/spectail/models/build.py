"""Turn the tensors of any source into its layers, in the same way for live modules and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from spectail.basics.checks import is_whole
from spectail.errors import SourceError
from spectail.models.assembly.adapters.join import join_adapters
from spectail.models.assembly.adapters.known import NOTHING_KNOWN, Known
from spectail.models.assembly.placeholders import with_placeholders
from spectail.models.assembly.recipes import assemble
from spectail.models.layout.arrange import as_is
from spectail.models.layout.configuration import Configuration
from spectail.models.layout.part import Part
from spectail.models.layout.rules import parts_of
from spectail.models.lazy_tensor import LazyTensor, in_memory
from spectail.models.naming.blocks import block_numbers, block_of
from spectail.models.naming.kinds import kind_of
from spectail.models.naming.names import clean_names, layer_name
from spectail.models.naming.not_weights import are_weights_named, no_matrix
from spectail.models.source import NOT_A_WEIGHT, Layer, Source
from spectail.models.tied import tied_head


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

    Args:
        label: What the source is called in messages and reports.
        fingerprint: A hash of the source's content.
        tensors: All tensors of the model, among them pieces of weights that are stored in parts.
        config: The transformers configuration of the model, if there is one.
        adapters: What the source states about its adapters (scales, base weights).
        notes: Remarks on how the source was read, one sentence each.

    Raises:
        SourceError: two layers have the same name.

    """
    tensors = list(tensors)
    _check_shapes(tensors, label)
    tensors = with_placeholders(_cleaned(tensors))
    # The order matters: quantised and parametrised weights are computed from their pieces first,
    # adapters are joined next, since their change may depend on such a weight. Only then are the
    # further names of tied weights removed.
    weights = assemble(tensors, config)
    weights, adapter_notes = join_adapters(
        weights, {stored.name: stored for stored in tensors}, adapters
    )
    weights = _once(weights)
    shapes = {stored.name: stored.shape for stored in (*tensors, *weights)}
    among_weights = are_weights_named(shapes)
    config = Configuration(config or {})
    layers: dict[str, Layer] = {}
    n_vectors = 0
    for stored in weights:
        # A bias may have two dimensions, as stacked experts have one vector each.
        if len(stored.shape) < 2 or stored.name.endswith("bias"):
            n_vectors += 1
            continue
        for layer in _layers_of(stored, shapes, config, among_weights):
            _add(layers, layer, label)
    numbers = block_numbers(layers)
    found = tuple(replace(layer, block=numbers[layer.name]) for layer in layers.values())
    tied = tied_head(found, config)
    return Source(label, fingerprint, found, n_vectors, (*notes, *adapter_notes), tied)


def _check_shapes(tensors: Iterable[LazyTensor], label: str) -> None:
    """Raise SourceError for a shape that no tensor can have; only damaged files state one."""
    for stored in tensors:
        sizes = stored.shape
        if not all(is_whole(size, 0) for size in sizes) or max((*sizes, stored.numel)) >= 2**63:
            raise SourceError(
                f"{label} states the shape {str(sizes)[:80]} for {stored.name!r}: it is damaged"
            )


def _add(layers: dict[str, Layer], layer: Layer, label: str) -> None:
    """Add a layer under its name, or under its parameter's full name if that is taken."""
    # A state dict may hold both "a" and "a.weight": the second keeps its full name.
    name = layer.name if layer.name not in layers else f"{layer.name}.weight"
    if name in layers:
        raise SourceError(
            f"two layers are called {layer.name!r} in {label}; "
            "give each parameter a name of its own"
        )
    layers[name] = replace(layer, name=name)


def _cleaned(tensors: list[LazyTensor]) -> list[LazyTensor]:
    """Remove wrapper prefixes from all names at once, so that pieces of one weight still match."""
    names = clean_names([stored.name for stored in tensors])
    return [replace(stored, name=name) for stored, name in zip(tensors, names, strict=True)]


def _once(tensors: Iterable[LazyTensor]) -> list[LazyTensor]:
    """Keep each tied weight once, under the first of its names."""
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
    """List the layers of one tensor.

    A tensor that cannot be read, or that is no weight matrix, gives one row with its stored shape.
    """
    if reason := _replaced(tensor.name, shapes) or _no_weight(tensor, among_weights):
        return [_row_without_values(tensor, no_weight=f"no weight matrix: {reason}")]
    problem = tensor.problem
    if not problem and tensor.numel == 0:
        problem = f"empty: its shape is {'x'.join(map(str, tensor.shape))}"
    if problem:
        return [_row_without_values(tensor, problem=problem)]
    return [_layer(tensor, part) for part in parts_of(tensor, shapes, config)]


def _replaced(name: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return why a module is unused if an adapter has replaced it with a saved copy; else None.

    peft keeps the original of a module in ``modules_to_save`` under ``original_module``. The model
    computes with the copy beside it.
    """
    if ".original_module." in name and name.replace(".original_module.", ".", 1) in shapes:
        return "a module that an adapter replaces, and that the model does not use"
    return None


def _no_weight(tensor: LazyTensor, among_weights: bool) -> str | None:
    """Return why a tensor is no weight matrix, by its owner or else its name; else None."""
    # Packed integers keep their row, which says why they could not be read: their name alone would
    # not show that they belong to a weight.
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
    """Describe a tensor whose values are never read: it is unreadable or no weight matrix."""
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
    """Return the same layer, but with ``values``, (n_matrices, rows, cols), in place of its own."""
    part = Part(layer.name, layer.kind, layer.n_matrices, layer.rows, layer.cols, (), as_is)
    return replace(layer, tensor=in_memory(layer.name, values), part=part)
