"""How parameters are laid out, and which matrices they hold: one table of rules, each in the module of its idea.

Conventions: a matrix is (output, input); a fused parameter is cut into parts that are layers of
their own; an embedding keeps its stored orientation, (words, features).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from spectail.models.layout.attention import fused_attention, fused_key_value, linear_attention
from spectail.models.layout.configuration import Config, sub_config
from spectail.models.layout.conv1d import conv1d
from spectail.models.layout.convolutions import convolution, convolution_or_stack
from spectail.models.layout.experts import flat_experts, stacked_experts
from spectail.models.layout.mlp import fused_gate_up
from spectail.models.layout.part import Part
from spectail.models.layout.per_head import per_head
from spectail.models.layout.recurrent import recurrent
from spectail.models.layout.spectral import spectral
from spectail.models.layout.view import View
from spectail.models.lazy_tensor import Index, LazyTensor

Rule: TypeAlias = "Callable[[View], tuple[Part, ...] | None]"
"""Lists the parts of a tensor that the rule knows, None for every other tensor."""


def _lora(view: View) -> tuple[Part, ...] | None:
    """An adapter's delta: a matrix, or the slices of a convolution."""
    if view.stored.layout != "lora":
        return None
    return (view.matrix(kind="lora") if len(view.shape) == 2 else convolution(view, kind="lora"),)


def _embedding(view: View) -> tuple[Part, ...] | None:
    """What a module says is an embedding."""
    return (
        (view.matrix(kind="embedding"),)
        if view.stored.layout == "embedding" and len(view.shape) == 2
        else None
    )


RULES: tuple[Rule, ...] = (
    _lora,
    spectral,
    _embedding,
    recurrent,
    stacked_experts,
    flat_experts,
    per_head,
    conv1d,
    linear_attention,
    fused_attention,
    fused_key_value,
    fused_gate_up,
    convolution_or_stack,
)
"""Tried in this order; a tensor that none of them knows is one matrix as stored."""


def parts_of(
    stored: LazyTensor, shapes: Mapping[str, tuple[int, ...]], config: Config
) -> tuple[Part, ...]:
    """List the layers that a stored tensor holds; none where it has fewer than two dimensions.

    ``shapes`` are those of all tensors of the model by name, ``config`` is the configuration of the
    whole model.
    """
    if len(stored.shape) < 2:
        return ()
    shape = stored.shape
    lead: Index = ()
    if not stored.name.endswith("weight") and stored.layout is None:
        while len(shape) > 2 and shape[0] == 1:
            shape, lead = shape[1:], (*lead, 0)
    view = View(stored, shapes, sub_config(config, stored.name), stored.name, shape, lead)
    for rule in RULES:
        if parts := rule(view):
            return parts
    return (view.matrix(),)
