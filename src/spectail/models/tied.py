"""Tied weights: layers that have no weight of their own but use that of another layer.

A source lists each weight once. WeightWatcher counts a weight once for every module that uses it,
so its preset measures these layers too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from spectail.models.naming.blocks import block_of
from spectail.models.naming.kinds import kind_of
from spectail.models.naming.names import layer_name
from spectail.models.source import Layer

_TOKENS = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|token_embd)$"
)
"""Names of token embeddings."""


def sharing(layer: Layer, name: str) -> Layer:
    """Return the layer ``name`` that uses the weight of another layer."""
    kind = "conv" if layer.kind == "conv" else kind_of(name)
    note = "; ".join(filter(None, (f"uses the weight of {layer.name}", layer.note)))
    return replace(layer, name=name, kind=kind, block=block_of(name), note=note)


def tied_modules(
    layers: Sequence[Layer], parameters: Iterable[tuple[str, Tensor]]
) -> tuple[Layer, ...]:
    """Return the layers of a live module that share the weight of an earlier one.

    ``parameters`` are the names and parameters of all modules, a shared one under every name.
    """
    # Only a layer that is its whole parameter can be used by another module as it is.
    whole = {
        id(layer.parameters[0]): layer
        for layer in layers
        if len(layer.parameters) == 1 and layer.parameters[0].numel() == layer.numel
    }
    seen: set[int] = set()
    found = []
    for name, parameter in parameters:
        if id(parameter) in seen and (layer := whole.get(id(parameter))):
            found.append(sharing(layer, layer_name(name)))
        seen.add(id(parameter))
    return tuple(found)


def tied_head(layers: Sequence[Layer], config: Mapping[str, Any]) -> tuple[Layer, ...]:
    """Return the head of a stored language model whose file holds the token embedding only.

    It is called ``lm_head``, as in the models of transformers.
    """
    causal = any(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ())
    # Configurations leave out what is the default, and tied is the default of transformers.
    if not causal or not config.get("tie_word_embeddings", True):
        return ()
    if any(layer.kind == "head" for layer in layers):
        return ()
    tokens = [layer for layer in layers if _TOKENS.search(layer.name)]
    return (sharing(tokens[0], "lm_head"),) if len(tokens) == 1 else ()
