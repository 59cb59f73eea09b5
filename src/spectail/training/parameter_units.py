"""Group a model's parameters into units: one weight each, with the norms and biases attached to it.

A bias is attached to the weight of its own module. A norm, or any other vector, is attached within
the smallest module around it that holds a weight: to the nearest weight before it in the order of
the modules, or to the first one after it if there is none before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from spectail.models.source import Layer


@dataclass(frozen=True, eq=False)
class Unit:
    """Parameters with one factor: a weight (all its pieces) and its attached parameters."""

    name: str
    """The name of its layer, or the common beginning of the names if it holds several layers (a
    fused projection).
    """
    layers: tuple[str, ...]
    """Names of the layers that are measured for it."""
    weights: tuple[nn.Parameter, ...]
    """The pieces of the weight."""
    attached: tuple[nn.Parameter, ...] = ()
    """Attached parameters: norms and biases that train with the weight's factor."""

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The weights and the attached parameters."""
        return (*self.weights, *self.attached)


def units_of(model: nn.Module, layers: Sequence[Layer]) -> list[Unit]:
    """Group the model's parameters by weight, in the order of ``layers``.

    Layers that share a parameter form one unit. Layers that are not read from a parameter (packed
    integers) belong to no unit.
    """
    units = _weights(layers)
    # By identity: tied parameters are one object under several names.
    owner = {id(p): i for i, unit in enumerate(units) for p in unit.weights}
    everything = _in_order(model)
    weights = [
        (path, place, owner[id(p)]) for place, (path, p) in enumerate(everything) if id(p) in owner
    ]
    following: dict[int, dict[int, nn.Parameter]] = {}
    for place, (path, parameter) in enumerate(everything):
        if id(parameter) not in owner and (i := _nearest(path, place, weights)) is not None:
            owner[id(parameter)] = i
            following.setdefault(i, {})[id(parameter)] = parameter
    return [
        replace(unit, attached=tuple(following.get(i, {}).values())) for i, unit in enumerate(units)
    ]


def first_and_last(model: nn.Module, units: Iterable[Unit]) -> tuple[str, ...]:
    """Return the names of the first and the last unit, by the order of the model's modules.

    A tied weight counts at each of its places, so a head that shares the embedding's weight is the
    last layer. Parameters of a module that also has sub-modules count only if they are called
    weight; class tokens and position tables are no layers.
    """
    names = {id(p): unit.name for unit in units for p in unit.weights}
    found = []
    for _, module in model.named_modules(remove_duplicate=False):
        # A ParametrizationList holds a weight although it has sub-modules.
        alone = not any(True for _ in module.children()) or isinstance(module, ParametrizationList)
        for name, parameter in module._parameters.items():
            if id(parameter) in names and (alone or "weight" in name):
                found.append(names[id(parameter)])
    return (found[0], found[-1]) if found else ()


def _weights(layers: Sequence[Layer]) -> list[Unit]:
    """Return one unit per set of layers that share parameters, without attached parameters."""
    units: list[Unit] = []
    place: dict[int, int] = {}
    for layer in layers:
        # Weight norm, for one, makes a weight from two parameters: both train with its factor.
        pieces = {id(p): p for p in layer.parameters if isinstance(p, nn.Parameter)}
        i = next((place[key] for key in pieces if key in place), len(units))
        if pieces and i == len(units):
            units.append(Unit(layer.name, (layer.name,), tuple(pieces.values())))
        elif pieces:
            names = (*units[i].layers, layer.name)
            merged = {id(p): p for p in units[i].weights} | pieces
            units[i] = Unit(_common(names) or names[0], names, tuple(merged.values()))
        place |= dict.fromkeys(pieces, i)
    return units


def _common(names: Sequence[str]) -> str:
    """Return the common beginning of names, such as ``attn.qkv`` for its three parts."""
    # What the smallest and the largest name share, all names between them share too.
    first, last = min(names), max(names)
    same = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[:same].rstrip(".[")


def _in_order(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return (path of the owning module, parameter) for all parameters, in module order."""
    return [
        (path, p)
        for path, module in model.named_modules()
        for p in module._parameters.values()
        if p is not None
    ]


def _nearest(path: str, place: int, weights: Sequence[tuple[str, int, int]]) -> int | None:
    """Return the unit to attach a parameter at ``path`` to; None if the model has no weight.

    ``place`` is the parameter's position in module order. ``weights`` holds (path, place, unit) of
    every piece of a weight, in order.
    """
    around = path
    while True:
        inside = [
            (there, i)
            for p, there, i in weights
            if not around or p == around or p.startswith(f"{around}.")
        ]
        # The nearest weight before, else the first one behind.
        if inside:
            return next((i for there, i in reversed(inside) if there < place), inside[0][1])
        if not around:
            return None
        around = around.rpartition(".")[0]
