"""Which layers calibration text reaches: what it does not reach cannot be pruned by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spectail.errors import PruneError
from spectail.models.live.eval_mode import evaluating
from spectail.models.live.walk import module_source
from spectail.models.live.weights import Weight
from spectail.models.naming.select import matches
from spectail.pruning.forward import run_tokens
from spectail.pruning.layers import Scope, weights_of
from spectail.pruning.statistics import Count, takes_features, unseen_of, watching

NOT_REACHED = (
    "its inputs are not seen: no token of the calibration text passes through it as a module"
)
"""Reason of layers that only images or audio reach, or whose weight is used without calling its
module."""


def scope_of(
    model: nn.Module,
    tokens: Tensor | None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Scope:
    """Say which layers are pruned: with calibration tokens, those that the tokens reach.

    Raises:
        PruneError: a glob that changes nothing, or that names only layers which no token reaches.

    """
    scope = Scope(tuple(include), tuple(exclude))
    if tokens is None:
        return scope
    source = module_source(model, fingerprint=False)
    names = {layer.name for layer in scope.cover(source).layers}
    lost = unreached(model, weights_of(model, source, names), tokens)
    for glob in scope.include:
        named = [name for name in names if matches(name, glob)]
        if named and all(name in lost for name in named):
            raise PruneError(
                f"include {glob!r} names what calibration text cannot prune ({lost[named[0]]}): prune it by magnitude"
            )
    return Scope(scope.include, scope.exclude, lost)


def check_reached(model: nn.Module, weights: Sequence[Weight], tokens: Tensor) -> None:
    """Refuse an allocation that names weights which calibration text does not reach."""
    if lost := unreached(model, weights, tokens):
        name, reason = next(iter(lost.items()))
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise PruneError(
            f"{name}{more} cannot be pruned by calibration text, {reason}: exclude it from the allocation, "
            "or prune by magnitude"
        )


def unreached(model: nn.Module, weights: Sequence[Weight], tokens: Tensor) -> dict[str, str]:
    """The weights whose inputs cannot be seen when the first sample of token ids runs, by name, with the reason.

    Cross-attention to images, vision towers and mixers that hand their weight to a fused kernel are
    of this kind.

    Raises:
        PruneError: the model does not run on token ids alone.

    """
    reasons = {
        weight.name: f"its inputs are not seen: it sits in a {type(weight.owner).__name__}"
        for weight in weights
        if weight.expert is None and not takes_features(weight)
    }
    rest = [weight for weight in weights if weight.name not in reasons]
    with torch.no_grad(), evaluating(model), watching(rest, Count) as seen:
        run_tokens(model, tokens[:1], [weight.path for weight in weights])
    return reasons | dict.fromkeys(unseen_of(rest, seen), NOT_REACHED)
