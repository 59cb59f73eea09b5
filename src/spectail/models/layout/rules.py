"""How parameters are stored, and which matrices they hold: one table of rules, tried in order.

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
"""Lists the parts of a tensor that the rule recognises; None for every other tensor."""


def _lora(view: View) -> tuple[Part, ...] | None:
    """Describe the change that an adapter makes: a matrix, or a convolution."""
    if view.stored.layout != "lora":
        return None
    return (view.matrix(kind="lora") if len(view.shape) == 2 else convolution(view, kind="lora"),)


def _embedding(view: View) -> tuple[Part, ...] | None:
    """Describe a tensor whose live module is an embedding."""
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
"""The rules in the order in which they are tried. A tensor that none of them recognises is one
matrix in its stored orientation."""


def parts_of(
    stored: LazyTensor, shapes: Mapping[str, tuple[int, ...]], config: Config
) -> tuple[Part, ...]:
    """List the layers that a stored tensor holds; none if it has fewer than two dimensions.

    Args:
        stored: The tensor.
        shapes: Shapes of all tensors of the model, by name.
        config: Configuration of the whole model.

    """
    if len(stored.shape) < 2:
        return ()
    shape = stored.shape
    lead: Index = ()
    if not stored.name.endswith("weight") and stored.layout is None:
        # Bare parameters are often stored with leading dimensions of size one, for broadcasting.
        while len(shape) > 2 and shape[0] == 1:
            shape, lead = shape[1:], (*lead, 0)
    view = View(stored, shapes, sub_config(config, stored.name), stored.name, shape, lead)
    # The first rule that recognises the tensor decides; the order is part of the meaning.
    for rule in RULES:
        if parts := rule(view):
            return parts
    return (view.matrix(),)
