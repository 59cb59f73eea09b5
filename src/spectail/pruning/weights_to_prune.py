"""Find the weights of a live model that an allocation names, and how many zeros each one gets."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real

import torch
from torch import nn

from spectail.allocation.allocation import Allocation, LayerValue
from spectail.allocation.coverage import Coverage, cover
from spectail.allocation.left_out import Code, LeftOut, Reason
from spectail.basics.texts import first_names
from spectail.errors import AllocationError, PruneError, SourceError
from spectail.models.live.walk import module_source
from spectail.models.live.weights import Weight, editable, owners
from spectail.models.naming.blocks import unit_of
from spectail.models.naming.pairing import Pairing, pair_names, prediction_layers
from spectail.models.naming.select import ALL_KINDS, KindFilter
from spectail.models.source import Layer, Source
from spectail.pruning.quotas import Pattern, Quota, pattern_counts, zero_counts

SHOWN = 4
"""The most names that an error lists; the others are counted."""
FILE_ONLY = Reason(
    Code.FILE_ONLY, "multi-token prediction: it lies in the file and not in the model"
)
"""Reason for a layer that is in an allocation made from a file, but not in the model."""
NOT_NAMED = Reason(Code.NOT_NAMED, "not in the allocation")
"""Reason for a layer that the allocation could have named and did not."""


@dataclass(frozen=True, eq=False)
class PruningTarget:
    """One weight and how many zeros it gets."""

    weight: Weight
    ratio: float
    """The ratio of zeros asked for, before rounding to a whole number of zeros."""
    quota: Quota
    """The number of zeros, or the pattern, that the ratio became."""

    @property
    def numel(self) -> int:
        """The number of single weights in it."""
        return self.weight.rows * self.weight.cols


@dataclass(frozen=True)
class Scope:
    """Which layers are pruned: by default the matrices inside blocks that text passes through."""

    include: tuple[str, ...] = ()
    """Globs of layers to prune that would stay dense by default."""
    exclude: tuple[str, ...] = ()
    """Globs of layers that stay dense."""
    of: KindFilter = ALL_KINDS
    """Kinds and types of layers to prune; others stay dense."""
    unseen: Mapping[str, str] = field(default_factory=dict)
    """Layers that calibration text does not reach, each with the reason: see ``reached_layers``."""

    @property
    def chosen(self) -> bool:
        """Whether the caller has chosen layers."""
        return bool(self.include or self.exclude or self.of)

    def cover(self, source: Source) -> Coverage[Layer]:
        """Divide the layers of a model into those that are pruned and those left out.

        Raises:
            PruneError: no layer is left to prune, or a glob changes nothing.

        """
        try:
            found = cover(
                source.layers,
                inside_blocks=True,
                include=self.include,
                exclude=self.exclude,
                of=self.of,
            )
        except AllocationError as error:
            # With globs the error is about them; without, the model itself has nothing to prune.
            if self.chosen:
                raise PruneError(str(error)) from None
            raise PruneError(f"{source.label} has no weights to prune: {error}") from None
        kept = tuple(layer for layer in found.layers if layer.name not in self.unseen)
        if not kept:
            name = found.layers[0].name
            raise PruneError(
                f"calibration text reaches no layer: {name}: {self.unseen[name]}; "
                "prune by magnitude"
            )
        reasons = {layer.name: layer.why for layer in found.left_out}
        reasons |= {
            layer.name: Reason(Code.UNREACHED, self.unseen[layer.name])
            for layer in found.layers
            if layer.name in self.unseen
        }
        # Both sources of reasons are merged in the model's order, which reports keep.
        left_out = (
            LeftOut(layer.name, reasons[layer.name])
            for layer in source.layers
            if layer.name in reasons
        )
        return Coverage(kept, tuple(left_out), found.notes)


def coverage_of(source: Source) -> Coverage[Layer]:
    """Return the layers that are pruned by default, without globs."""
    return Scope().cover(source)


def weights_of(model: nn.Module, source: Source, names: Container[str]) -> list[Weight]:
    """Return the weights of the layers ``names`` of ``module_source(model)``, in the model's order.

    Raises:
        PruneError: one of them cannot be written.

    """
    places = owners(model)
    try:
        return [editable(layer, places) for layer in source.layers if layer.name in names]
    except SourceError as error:
        raise PruneError(str(error)) from None


def make_targets(
    model: nn.Module,
    allocation: Allocation | Mapping[str, float] | float,
    pattern: Pattern | None = None,
) -> list[PruningTarget]:
    """Return the weights to prune: the first result of ``choose_targets``."""
    return choose_targets(model, allocation, pattern)[0]


def choose_targets(
    model: nn.Module,
    allocation: Allocation | Mapping[str, float] | float,
    pattern: Pattern | None = None,
) -> tuple[list[PruningTarget], tuple[LeftOut, ...]]:
    """Pair an allocation with the model's weights by name, and check that they can be pruned.

    A single number is the ratio of every layer that is pruned by default. The allocation may use
    the names of the live model or those of its saved file (experts can be fused in one and separate
    in the other). The second result lists the layers that stay dense, with the reasons.

    Raises:
        PruneError: a name that the model lacks, a layer that the allocation lacks, a ratio outside
            [0, 1], or a weight that cannot be pruned (tied, quantised, NaN).

    """
    source = module_source(model, fingerprint=False)
    pairing = _paired(source, allocation)
    ratios = _ratios(source, allocation, pairing, model)
    weights = weights_of(model, source, ratios)
    check_finite(weights)
    # Quotas are set for all layers at once, because the rounding of one depends on the others.
    wanted = [ratios[weight.name] for weight in weights]
    if pattern and not any(weight.cols >= pattern.m for weight in weights):
        raise PruneError(f"no layer has {pattern.m} inputs, so pattern {pattern} prunes nothing")
    shapes = [(weight.rows, weight.cols) for weight in weights]
    quotas: list[Quota] = (
        list(pattern_counts(wanted, shapes, pattern.m))
        if pattern
        else list(zero_counts(wanted, [rows * cols for rows, cols in shapes]))
    )
    targets = [PruningTarget(*three) for three in zip(weights, wanted, quotas, strict=True)]
    return targets, _left_out(source, ratios, allocation, pairing)


def check_finite(weights: Iterable[Weight]) -> None:
    """Raise PruneError if a weight holds NaN or infinity, or has no values yet."""
    for weight in weights:
        if weight.tensor.is_meta or not bool(torch.isfinite(weight.read()).all()):
            raise PruneError(
                f"{weight.name} holds NaN or infinite weights: nothing can be ranked by them"
            )


def _paired(source: Source, allocation: Allocation | Mapping[str, float] | float) -> Pairing:
    """Pair all names in an allocation, left-out layers included, with the layers of the model."""
    given = list(allocation) if isinstance(allocation, Mapping) else []
    if isinstance(allocation, Allocation):
        # Left-out names take part in the pairing, so that their reasons reach the report.
        given += [layer.name for layer in allocation.left_out]
    saved = {layer.name: layer.saved_as for layer in source.layers if layer.saved_as}
    return pair_names(given, [layer.name for layer in source.layers], right_saved=saved)


def in_names_of(model: nn.Module, allocation: Allocation) -> Allocation:
    """Return an allocation of a file under the names of the live model.

    Layers that the model lacks keep their names.
    """
    pairs = _paired(module_source(model, fingerprint=False), allocation).pairs

    def renamed(share: LayerValue) -> LayerValue:
        name = pairs.get(share.name, share.name)
        unit = name if share.unit == share.name else unit_of(name) or share.unit
        return replace(share, name=name, unit=unit)

    return replace(
        allocation,
        shares=tuple(map(renamed, allocation.shares)),
        left_out=tuple(replace(x, name=pairs.get(x.name, x.name)) for x in allocation.left_out),
    )


def _left_out(
    source: Source,
    ratios: Mapping[str, float],
    allocation: Allocation | Mapping[str, float] | float,
    pairing: Pairing,
) -> tuple[LeftOut, ...]:
    """Return every layer without a ratio, with the allocation's reason or else the default one.

    Layers that the allocation names and only the file has come last.
    """
    try:
        reasons = {layer.name: layer.why for layer in coverage_of(source).left_out}
    except PruneError:
        reasons = {}
    given = allocation.left_out if isinstance(allocation, Allocation) else ()
    told = {pairing.pairs[layer.name]: layer.why for layer in given if layer.name in pairing.pairs}
    dense = [
        LeftOut(layer.name, told.get(layer.name) or reasons.get(layer.name, NOT_NAMED))
        for layer in source.layers
        if layer.name not in ratios
    ]
    asked = allocation if isinstance(allocation, Mapping) else {}
    return (*dense, *(LeftOut(name, FILE_ONLY) for name in pairing.left_only if name in asked))


def _ratios(
    source: Source,
    allocation: Allocation | Mapping[str, float] | float,
    pairing: Pairing,
    model: nn.Module,
) -> dict[str, float]:
    """Return the ratios of an allocation under the model's names.

    Raises:
        PruneError: see ``choose_targets``.

    """
    if isinstance(allocation, Real) and not isinstance(allocation, bool):
        return dict.fromkeys(
            (layer.name for layer in coverage_of(source).layers), check_sparsity(allocation)
        )
    if not isinstance(allocation, Mapping):
        raise PruneError(
            "expected an allocation, a mapping from layer to ratio or one number, "
            f"not {allocation!r}"
        )
    if isinstance(allocation, Allocation) and allocation.target != "sparsity":
        raise PruneError(f"expected an allocation of sparsity, not of {allocation.target}")
    _check_partners(source, allocation, pairing, model)
    known = set(pairing.pairs.values())
    # Layers that nobody decided on are more likely forgotten than meant to stay dense.
    if missing := [name for name in _covered(source) if name not in known]:
        raise PruneError(
            f"the allocation has no {_listed(missing)}; give 0 to what should stay dense"
        )
    if isinstance(allocation, Allocation):
        _check_sizes(source, allocation, pairing)
    ratios = {pairing.pairs[name]: allocation[name] for name in allocation if name in pairing.pairs}
    for name, ratio in ratios.items():
        if isinstance(ratio, bool) or not isinstance(ratio, Real) or not 0 <= ratio <= 1:
            raise PruneError(f"the ratio of {name} must be a number from 0 to 1, not {ratio!r}")
    return {name: float(ratio) for name, ratio in ratios.items()}


def _check_sizes(source: Source, allocation: Allocation, pairing: Pairing) -> None:
    """Refuse an allocation for layers of other sizes: its mean would be missed."""
    numel = {layer.name: layer.numel for layer in source.layers}
    for share in allocation.shares:
        name = pairing.pairs.get(share.name)
        if name is not None and numel[name] != share.numel:
            raise PruneError(
                f"the allocation was made for another model: {name} has {numel[name]} weights "
                f"here, and {share.numel} there"
            )


def _check_partners(
    source: Source, allocation: Mapping[str, float], pairing: Pairing, model: nn.Module
) -> None:
    """Refuse names that the model lacks, except those of multi-token prediction blocks."""
    # Checkpoints hold these blocks (DeepSeek-V3, for one), and no model class loads them.
    left_out = allocation.left_out if isinstance(allocation, Allocation) else ()
    unknown = prediction_layers([*allocation, *(layer.name for layer in left_out)])
    lacking = [name for name in allocation if name not in pairing.pairs and name not in unknown]
    if not lacking:
        return
    several = pairing.ambiguous.get(lacking[0])
    if several:
        raise PruneError(
            f"{lacking[0]} could be any of {_listed(list(several))}: "
            "name the layer as the model does"
        )
    raise PruneError(
        f"the model has no {_listed(lacking)}{_tied(model, lacking[0])}; "
        f"names look like {_like(source)}"
    )


def check_sparsity(given: object) -> float:
    """Return a sparsity as a float; PruneError unless it is a number from 0 to below 1."""
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= float(given) < 1:
        raise PruneError(f"a sparsity must be at least 0 and below 1, not {given!r}")
    return float(given)


def _covered(source: Source) -> tuple[str, ...]:
    """Return the layers that an allocation must name; none if no layer is pruned by default."""
    try:
        return tuple(layer.name for layer in coverage_of(source).layers)
    except PruneError:
        return ()


def _tied(model: nn.Module, name: str) -> str:
    """Return a phrase if the model has a module of this name whose weight is another layer's."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return ""
    return (
        " of its own (it is tied to another layer)"
        if getattr(module, "weight", None) is not None
        else ""
    )


def _like(source: Source) -> str:
    """Return two of the model's own names as an example, if possible from inside blocks."""
    # Names inside blocks show the pattern that an allocation follows.
    inside = [layer.name for layer in source.layers if layer.block is not None] or [
        layer.name for layer in source.layers
    ]
    return ", ".join(inside[:2])


def _listed(names: list[str]) -> str:
    """List names, shortened to the first ones and a count of the others."""
    return first_names(names, SHOWN)
