"""Find the layers that calibration text reaches; a method that needs text can prune only these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from spectail.basics.texts import first_names
from spectail.errors import PruneError
from spectail.models.live.eval_mode import evaluating
from spectail.models.live.walk import module_source
from spectail.models.live.weights import Weight
from spectail.models.naming.select import ALL_KINDS, KindFilter, matches
from spectail.pruning.forward import run_tokens
from spectail.pruning.statistics import Count, takes_features, unseen_of, watching
from spectail.pruning.weights_to_prune import Scope, weights_of

NOT_REACHED = (
    "its inputs are not seen: no token of the calibration text passes through it as a module"
)
"""Reason for layers that only images or audio reach, or whose weight is used without calling its
module."""


def scope_of(
    model: nn.Module,
    tokens: Tensor | None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    of: KindFilter = ALL_KINDS,
) -> Scope:
    """Return the scope of a run; with calibration tokens it leaves out layers they do not reach.

    Raises:
        PruneError: a glob changes nothing, or names only layers that no token reaches.

    """
    scope = Scope(tuple(include), tuple(exclude), of)
    if tokens is None:
        return scope
    source = module_source(model, fingerprint=False)
    names = {layer.name for layer in scope.cover(source).layers}
    lost = unreached(model, weights_of(model, source, names), tokens)
    for glob in scope.include:
        named = [name for name in names if matches(name, glob)]
        # A glob may name some layers that text does not reach, as ``*`` does.
        if named and all(name in lost for name in named):
            raise PruneError(
                f"include {glob!r} names what calibration text cannot prune "
                f"({lost[named[0]]}): prune it by magnitude"
            )
    return replace(scope, unseen=lost)


def check_reached(model: nn.Module, weights: Sequence[Weight], tokens: Tensor) -> None:
    """Refuse weights that calibration text does not reach, although an allocation names them."""
    if lost := unreached(model, weights, tokens):
        reason = next(iter(lost.values()))
        raise PruneError(
            f"{first_names(lost)} cannot be pruned by calibration text, {reason}: "
            "exclude it from the allocation, or prune by magnitude"
        )


def unreached(model: nn.Module, weights: Sequence[Weight], tokens: Tensor) -> dict[str, str]:
    """Return, by name, the reason for every weight whose inputs the first sample does not show.

    Such are cross-attention to images, vision towers, and mixers that pass their weight to a fused
    kernel.

    Raises:
        PruneError: the model does not run on token ids alone.

    """
    reasons = {
        weight.name: f"its inputs are not seen: it sits in a {type(weight.owner).__name__}"
        for weight in weights
        if weight.expert is None and not takes_features(weight)
    }
    # Watching these would raise an error.
    rest = [weight for weight in weights if weight.name not in reasons]
    # One sample is enough: whether text reaches a layer does not depend on the words.
    with torch.no_grad(), evaluating(model), watching(rest, Count) as seen:
        run_tokens(model, tokens[:1], [weight.path for weight in weights])
    return reasons | dict.fromkeys(unseen_of(rest, seen), NOT_REACHED)
