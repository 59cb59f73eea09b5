"""From the tensors of any source to its layers: the one road that live modules and files share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from spectail.errors import SourceError
from spectail.models.blocks import block_of, kind_of
from spectail.models.combine import combine
from spectail.models.lora import ScaleOf, join_factors, no_scale
from spectail.models.matrices import Heads, Part, parts_of
from spectail.models.names import clean_names, layer_name
from spectail.models.source import Layer, Source
from spectail.models.stored import Stored, as_float


def build_source(
    label: str,
    fingerprint: str,
    tensors: Iterable[Stored],
    *,
    companions: Iterable[Stored] = (),
    config: Mapping[str, Any] | None = None,
    scale_of: ScaleOf = no_scale,
    notes: Iterable[str] = (),
) -> Source:
    """Turn the tensors of a model into its layers, in the same order.

    ``companions`` are buffers of a live module, ``config`` is a transformers configuration, ``scale_of`` gives the
    scaling of LoRA adapters.
    """
    tensors, companions = _cleaned(list(tensors), list(companions))
    weights, own_notes = combine(tensors, companions)
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


def _cleaned(tensors: list[Stored], companions: list[Stored]) -> tuple[list[Stored], list[Stored]]:
    """Take wrappers off all names together, for pieces of one weight must keep matching."""
    both = [*tensors, *companions]
    names = clean_names([stored.name for stored in both])
    renamed = [replace(stored, name=name) for stored, name in zip(both, names, strict=True)]
    return renamed[: len(tensors)], renamed[len(tensors) :]


def _once(tensors: Iterable[Stored]) -> list[Stored]:
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


def _layers_of(stored: Stored, shapes: Mapping[str, tuple[int, ...]], heads: Heads) -> Iterable[Layer]:
    """List the layers of one tensor; one that cannot be read keeps a row of its stored shape."""
    problem = stored.problem
    if not problem and stored.numel == 0:
        problem = f"empty: its shape is {'x'.join(map(str, stored.shape))}"
    if problem:
        name = layer_name(stored.name)
        kind = "lora" if stored.hint == "lora" else kind_of(name)
        rows, cols = stored.shape[-2:]
        load = partial(_refuse, name, problem)
        n_matrices = stored.numel // max(1, rows * cols)
        return [Layer(name, kind, block_of(name), rows, cols, n_matrices, stored.numel, load, problem)]
    return [_layer(stored, part) for part in parts_of(stored, shapes, heads)]


def _layer(stored: Stored, part: Part) -> Layer:
    """One readable layer."""
    return Layer(
        name=part.name,
        kind=part.kind,
        block=block_of(part.name),
        rows=part.rows,
        cols=part.cols,
        n_matrices=part.n_matrices,
        numel=part.n_matrices * part.rows * part.cols,
        load=partial(load_part, stored, part),
    )


def load_part(stored: Stored, part: Part) -> Tensor:
    """Read one layer as (n_matrices, rows, cols), in float32 or, where it is stored so, float64."""
    matrices = part.arrange(as_float(stored.read(part.index)))
    expected = (part.n_matrices, part.rows, part.cols)
    if tuple(matrices.shape) != expected:
        raise SourceError(
            f"{part.name} was announced as {expected} and reads as {tuple(matrices.shape)}: "
            "its source has changed since it was opened; open it again"
        )
    return matrices


def _refuse(name: str, problem: str) -> Tensor:
    """Say again why a layer cannot be read."""
    raise SourceError(f"{name} cannot be read: {problem}")
