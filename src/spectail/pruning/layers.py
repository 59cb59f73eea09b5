"""Which weights of a live model an allocation means, and how many zeros each of them gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import torch
from torch import nn

from spectail.allocation.allocation import Allocation
from spectail.allocation.coverage import Coverage, cover
from spectail.errors import AllocationError, PruneError, SourceError
from spectail.measurement import record_of
from spectail.models.live.walk import module_source
from spectail.models.live.weights import Weight, editable, owners
from spectail.models.naming.names import canonical_name
from spectail.models.source import Source
from spectail.pruning.quotas import Pattern, Quota, pattern_counts, zero_counts

SHOWN = 4
"""How many names an error lists before it counts the rest."""


@dataclass(frozen=True, eq=False)
class Target:
    """One weight with what it is to lose."""

    weight: Weight
    ratio: float
    """As asked, before it became a whole number of zeros."""
    quota: Quota

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.weight.rows * self.weight.cols


def coverage_of(source: Source) -> Coverage:
    """The layers that a sparsity is about unless more are named: matrices in blocks, without embeddings or routers."""
    return cover([record_of(layer) for layer in source.layers], inside_blocks=True)


def make_targets(
    model: nn.Module, allocation: Allocation | Mapping[str, float] | float, pattern: Pattern | None = None
) -> list[Target]:
    """Pair an allocation with the model's weights, by name and both ways, and check that they can be pruned.

    A number is the ratio of every layer that an allocation of sparsities covers. A layer is known under the names of
    a live model and of its saved file alike (experts are fused in one and single in the other).

    Raises:
        PruneError: a name that the model lacks, a layer that the allocation lacks, a ratio outside [0, 1], a weight
            that cannot be pruned (tied, quantised, NaN).

    """
    source = module_source(model)
    ratios = _ratios(source, allocation, model)
    places = owners(model)
    try:
        weights = [editable(layer, places) for layer in source.layers if layer.name in ratios]
    except SourceError as error:
        raise PruneError(str(error)) from None
    for weight in weights:
        if weight.tensor.is_meta or not bool(torch.isfinite(weight.read()).all()):
            raise PruneError(f"{weight.name} holds NaN or infinite weights: nothing can be ranked by them")
    wanted = [ratios[weight.name] for weight in weights]
    shapes = [(weight.rows, weight.cols) for weight in weights]
    quotas: list[Quota] = (
        list(pattern_counts(wanted, shapes, pattern.m))
        if pattern
        else list(zero_counts(wanted, [rows * cols for rows, cols in shapes]))
    )
    return [Target(*three) for three in zip(weights, wanted, quotas, strict=True)]


def _ratios(source: Source, allocation: Allocation | Mapping[str, float] | float, model: nn.Module) -> dict[str, float]:
    """The ratio of every layer of the model that has one, under the model's names."""
    covered = _covered(source)
    if isinstance(allocation, Real) and not isinstance(allocation, bool):
        if not 0 <= float(allocation) < 1:
            raise PruneError(f"a sparsity must be at least 0 and below 1, not {allocation!r}")
        return dict.fromkeys(covered, float(allocation))
    if not isinstance(allocation, Mapping):
        raise PruneError(f"expected an allocation, a mapping from layer to ratio or one number, not {allocation!r}")
    if isinstance(allocation, Allocation) and allocation.target != "sparsity":
        raise PruneError(f"expected an allocation of sparsity, not of {allocation.target}")
    names = {canonical_name(layer.name): layer.name for layer in source.layers}
    given = {canonical_name(name): name for name in allocation}
    if lacking := [name for canonical, name in given.items() if canonical not in names]:
        raise PruneError(
            f"the model has no {_listed(lacking)}{_tied(model, lacking[0])}; names look like {_like(source)}"
        )
    known = set(given)
    if isinstance(allocation, Allocation):
        known |= {canonical_name(layer.name) for layer in allocation.left_out}
    if missing := [name for name in covered if canonical_name(name) not in known]:
        raise PruneError(f"the allocation has no {_listed(missing)}; give 0 to what should stay dense")
    ratios = {names[canonical]: allocation[name] for canonical, name in given.items()}
    for name, ratio in ratios.items():
        if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 <= ratio <= 1:
            raise PruneError(f"the ratio of {name} must be a number from 0 to 1, not {ratio!r}")
    return {name: float(ratio) for name, ratio in ratios.items()}


def _covered(source: Source) -> tuple[str, ...]:
    try:
        return tuple(layer.name for layer in coverage_of(source).layers)
    except AllocationError as error:
        raise PruneError(f"{source.label} has no blocks of weights to prune: {error}") from None


def _tied(model: nn.Module, name: str) -> str:
    """Where the model does have the name, its weight is another layer's."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return ""
    return " of its own (it is tied to another layer)" if getattr(module, "weight", None) is not None else ""


def _like(source: Source) -> str:
    inside = [layer.name for layer in source.layers if layer.block is not None] or [
        layer.name for layer in source.layers
    ]
    return ", ".join(inside[:2])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
