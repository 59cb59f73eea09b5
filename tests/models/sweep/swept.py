"""One model class swept: what its live model and its file hold, and what the rules say of both."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from spectail.allocation.coverage import cover
from spectail.errors import AllocationError
from spectail.measuring.layer import record_of
from spectail.models.naming.names import clean_names
from spectail.models.naming.pairing import Pairing, pair_names
from spectail.models.source import Layer, Source

from .classes import LIBRARIES, NOT_BUILT, Case, build, cases
from .saved import saved_tensors
from .sources import file_source, live_source
from .truth import is_weight, parameters

_PIECE = re.compile(r"parametrizations\.(\w+)\.original\d*$|(?<=weight)_[gv]$")


@dataclass(frozen=True, eq=False)
class Swept:
    """The layers of one class, and the truth about them."""

    case: Case
    live: Source
    file: Source
    weights: Mapping[str, bool]
    """Whether each live parameter is a weight matrix, by the module that owns it."""
    routers: frozenset[str]
    """Live parameters of routers and embeddings, which no allocation covers by itself."""
    sources: Mapping[str, frozenset[str]]
    """Tensor of the file -> the live parameters whose values it holds."""

    @cached_property
    def pairing(self) -> Pairing:
        """File names with live names."""
        saved = {layer.name: layer.saved_as for layer in self.live.layers if layer.saved_as}
        return pair_names(names_of(self.file), names_of(self.live), right_saved=saved)

    def wrong_pairs(self) -> list[tuple[str, str]]:
        """Pairs whose tensor in the file does not come from the live layer's
        parameter, or has another size."""
        file, live = (
            {layer.name: layer for layer in source.layers} for source in (self.file, self.live)
        )
        return [
            (one, other)
            for one, other in self.pairing.pairs.items()
            if live[other].tensor.name not in self.sources[file[one].tensor.name]
            or file[one].numel != live[other].numel
        ]

    def wrong_roles(self) -> list[str]:
        """Layers, live and in the file, that are weights for one side and not for the rule."""
        live = [
            (x, self.weights[x.tensor.name])
            for x in self.live.layers
            if x.tensor.name in self.weights
        ]
        file = [
            (x, any(self.weights.get(s, False) for s in self.sources[x.tensor.name]))
            for x in self.file.layers
        ]
        return [
            f"{x.name}: {x.no_weight}"
            for x, weight in (*live, *file)
            if weight != (x.no_weight is None)
        ]

    def wrongly_covered(self) -> list[str]:
        """Live layers that a sparsity would cover although they are no weight,
        or a router's or an embedding's."""
        try:
            covered = cover(
                [record_of(layer) for layer in self.live.layers], inside_blocks=True
            ).layers
        except AllocationError:
            return []
        tensors = {layer.name: layer.tensor.name for layer in self.live.layers}
        names = [record.name for record in covered]
        return [
            n
            for n in names
            if not self.weights.get(tensors[n], False) or tensors[n] in self.routers
        ]


def names_of(source: Source) -> list[str]:
    """Names of the weights."""
    return [layer.name for layer in source.layers if not layer.no_weight]


def sweep() -> Iterator[Swept | tuple[Case, str]]:
    """Every class, or why it cannot be built here."""
    for case in cases():
        if case.class_name in NOT_BUILT:
            continue
        try:
            yield swept(case, build(case))
        except ImportError as error:
            yield case, next((name for name in LIBRARIES if name in str(error)), str(error))


def swept(case: Case, model: Any) -> Swept:
    """Look at one model; its parameters lose their shape's memory."""
    saved = saved_tensors(model)
    places = list(parameters(model))
    first: dict[int, str] = {}
    full = dict(
        zip([name for name, *_ in places], clean_names([name for name, *_ in places]), strict=True)
    )
    for name, _, _, parameter in places:
        first.setdefault(id(parameter), _assembled(full[name]))
    same = {name: first[id(parameter)] for name, _, _, parameter in places}
    weights: dict[str, bool] = {}
    routers = set()
    for name, owner, own, parameter in places:
        weights[same[name]] = weights.get(same[name], False) or (
            parameter.ndim > 1 and is_weight(owner, own, parameter)
        )
        if type(owner).__name__.endswith("Router") or isinstance(owner, nn.Embedding):
            routers.add(same[name])
    sources: dict[str, frozenset[str]] = {}
    for name, clean in zip(saved, clean_names(list(saved)), strict=True):
        held = frozenset(same.get(source, source) for source in saved[name].sources)
        sources[_assembled(clean)] = sources.get(_assembled(clean), frozenset()) | held
    config = model.config.to_dict()
    return Swept(
        case, live_source(model), file_source(saved, config), weights, frozenset(routers), sources
    )


def _assembled(name: str) -> str:
    """Name of the weight that a piece of a weight norm belongs to."""
    return _PIECE.sub(lambda match: match[1] or "", name)


def without_partner(swept: Swept) -> list[Layer]:
    """Layers of either side that pair with none."""
    alone = {*swept.pairing.left_only, *swept.pairing.right_only}
    return [
        layer
        for source in (swept.file, swept.live)
        for layer in source.layers
        if layer.name in alone
    ]
