"""Experts of a mixture that share one tensor: every expert's projection is a part.

A part is called ``gate_up_proj[3].gate``, for example.

- transformers stacks experts as (experts, out, in); Llama 4, Aria and gpt-oss as (experts, in,
  out). A live module says which. In a file, the shapes of the input and the output projection fit
  only one of the two readings.
- The gate lies above the up projection; in gpt-oss their rows alternate.
- DBRX and MegaBlocks stack experts one below the other in two dimensions, (experts x hidden,
  width), and store the output projection w2 as (in, out).
- JetMoE's mixture of attention heads has experts whose input projection has no gate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from spectail.models.layout.arrange import as_one, transposed
from spectail.models.layout.configuration import family_of, number
from spectail.models.layout.cut import Cut, alternating, cut_columns, cut_rows, halves
from spectail.models.layout.part import Part
from spectail.models.layout.view import View
from spectail.models.lazy_tensor import MOST_EXPERTS
from spectail.models.naming.kinds import kind_of

_STACKED = re.compile(
    r"(?:^|\.)(?:\w*experts|moe|cond_ffn|switch_(?:mlp|glu))\.|\.(?:input|output)_linear\.weight$"
    r"|ffn_\w+_exps\.weight$"
)
"""Names of parameters that stack experts in three dimensions; MLX calls their module switch_mlp."""
_FLAT = re.compile(r"(?:^|\.)experts\.mlp\.(w1|v1|w2)$")
"""Names of parameters that stack experts in two dimensions."""
_FLAT_KINDS = {"w1": "gate", "v1": "up", "w2": "down"}
"""The kinds of those parameters in experts with a gate."""
COUNT = ("moe_num_experts", "num_local_experts", "num_experts", "n_routed_experts")
"""Configuration keys for the number of experts."""
_FUSED = frozenset({"gate_up_proj", "input_linear", "ffn_gate_up_exps", "fc1"})
"""Input projections that can hold gate and up."""
_PAIR = {
    "gate_up_proj": "down_proj",
    "input_linear": "output_linear",
    "ffn_gate_up_exps": "ffn_down_exps",
    "fc1": "fc2",
}
"""Input projections, each with the output projection of the same experts."""
_PAIR_OF_DOWN = {down: up for up, down in _PAIR.items()}
"""The same from output to input."""


@dataclass(frozen=True)
class _Layout:
    """How a stack of experts is stored."""

    inward: bool
    """Whether each matrix is stored as (in, out)."""
    alternates: bool
    """Whether rows of gate and up alternate."""


_LIVE_LAYOUTS = {
    "experts": _Layout(False, False),
    "experts transposed": _Layout(True, False),
    "experts interleaved": _Layout(False, True),
    "experts transposed interleaved": _Layout(True, True),
}
"""The layouts that live modules report: see :func:`expert_layout`."""


_GUESSED = (
    "gate and up are cut as (experts, 2 x intermediate, hidden): "
    "no configuration and no output projection beside them tell the order"
)


def expert_layout(*, is_transposed: bool, is_concatenated: bool) -> str:
    """Name the layout that transformers' expert modules state in their attributes."""
    return "experts" + " transposed" * is_transposed + " interleaved" * (not is_concatenated)


def stacked_experts(view: View) -> tuple[Part, ...] | None:
    """List the parts of experts that are stacked in three dimensions."""
    if (
        len(view.shape) != 3
        or view.shape[0] > MOST_EXPERTS
        or not (_STACKED.search(view.name) or view.stored.layout in _LIVE_LAYOUTS)
    ):
        return None
    layout, kind = _layout(view), _kind(view)
    parts: list[Part] = []
    for expert in range(view.shape[0]):
        if kind == "gate_up":
            cut_up = cut_columns if layout.inward else cut_rows
            parts += cut_up(view, _gate_and_up(view, layout), index=(expert,), suffix=f"[{expert}]")
        else:
            size = view.shape[1:][::-1] if layout.inward else view.shape[1:]
            arrange = transposed if layout.inward else as_one
            parts.append(view.matrix(f"[{expert}]", kind, (expert,), size=size, arrange=arrange))
    if kind == "gate_up" and _is_guessed(view):
        return tuple(replace(part, note=_GUESSED) for part in parts)
    return tuple(parts)


def _is_guessed(view: View) -> bool:
    """Say whether nothing but custom tells how a stack of fused projections is stored."""
    known = view.stored.layout in _LIVE_LAYOUTS or family_of(view.config)
    return not known and _pair(view) is None


def _gate_and_up(view: View, layout: _Layout) -> Cut:
    """Return where gate and up lie in the fused projection of one expert."""
    rows = view.shape[2] if layout.inward else view.shape[1]
    return alternating(rows, "gate", "up") if layout.alternates else halves(rows, "gate", "up")


def _kind(view: View) -> str:
    """Return what the matrices of a stack do; ``gate_up`` if each has to be cut in two."""
    attention = "attention" in view.name or "attn" in view.name
    if view.last in _FUSED:
        pair = _pair(view)
        # A fused input projection is twice as wide as what the output projection takes in.
        fits = pair is None or view.shape[1] == 2 * pair[2] or view.shape[2] == 2 * pair[1]
        if fits and not (attention and pair is None) and (view.last != "fc1" or pair is not None):
            return "gate_up"
    # Granite's and JetMoE's names do not tell the kind; JetMoE uses them in attention too.
    if view.last in {"input_linear", "output_linear"}:
        roles = ("q", "o") if attention else ("up", "down")
        return roles[view.last == "output_linear"]
    # The name of a single expert, for which there are patterns.
    return kind_of(f"experts.0.{view.last}")


def _pair(view: View) -> tuple[int, ...] | None:
    """Return the shape of the output projection that goes with an input one, or the reverse."""
    other = _PAIR.get(view.last) or _PAIR_OF_DOWN.get(view.last)
    shape = view.sibling(other) if other else None
    return shape if shape and len(shape) == 3 else None


def _layout(view: View) -> _Layout:
    """Find how a stack is stored: from its module, or else from the shapes of both projections.

    gpt-oss, whose gate and up alternate, is recognised by its biases if there is no configuration.
    """
    if view.stored.layout in _LIVE_LAYOUTS:
        return _LIVE_LAYOUTS[view.stored.layout]
    pair = _pair(view)
    if pair is None:
        return _Layout(False, False)
    # Read both as (experts, in, out), and see whether the inner sizes agree.
    up, down = (view.shape, pair) if view.last in _PAIR else (pair, view.shape)
    inward = up[2] in {down[1], 2 * down[1]} and up[1] == down[2]
    # Shapes that fit both readings decide nothing; (out, in) is the common layout.
    inward = inward and not (up[1] in {down[2], 2 * down[2]} and up[2] == down[1])
    family = family_of(view.config)
    biased = view.sibling("gate_up_proj_bias") is not None
    return _Layout(inward, inward and (family == "gpt_oss" or (biased and not family)))


def flat_experts(view: View) -> tuple[Part, ...] | None:
    """List the parts of experts one below the other in two dimensions (DBRX, MegaBlocks)."""
    match = _FLAT.search(view.layer)
    if match is None or len(view.shape) != 2:
        return None
    count = _count(view)
    # Without v1 the experts have no gate, and w1 is an ordinary first layer.
    kind = _FLAT_KINDS[match[1]] if view.sibling("v1") else {"w1": "fc1", "w2": "fc2"}[match[1]]
    if count is None or view.shape[0] % count:
        why = (
            f"{view.shape[0]} rows are not {count} equal ones"
            if count
            else "no configuration tells how many"
        )
        return (view.matrix(kind=kind, note=f"experts one below the other, and {why}: kept whole"),)
    rows, width = view.shape[0] // count, view.shape[1]
    # w2 is stored like w1, although it maps the other way round.
    size, arrange = ((width, rows), transposed) if match[1] == "w2" else ((rows, width), as_one)
    return tuple(
        view.matrix(f"[{i}]", kind, (slice(i * rows, (i + 1) * rows),), size=size, arrange=arrange)
        for i in range(count)
    )


def _count(view: View) -> int | None:
    """Return the number of experts from the configuration or from the router beside them."""
    settings = view.config.get("ffn_config")
    stated = number(settings, COUNT) if isinstance(settings, dict) else None
    router = view.shapes.get(view.layer.partition("experts.mlp.")[0] + "router.layer.weight")
    return stated or number(view.config, COUNT) or (router[0] if router else None)
