"""What a model's parameters belong to: each weight with the norms and biases that follow it.

A bias follows the weight of its own module. A norm, or any other vector, follows the nearest weight
before it in the order of the modules, inside of the smallest module around it that holds a weight;
where none stands before it there, the first after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from spectail.models.source import Layer


@dataclass(frozen=True, eq=False)
class Unit:
    """Parameters that train alike: one weight (all its pieces) and what follows it."""

    name: str
    """Of its layer; what the names of its layers begin with where it holds several (a fused
    projection).
    """
    layers: tuple[str, ...]
    """Names of the layers that are measured for it."""
    weights: tuple[nn.Parameter, ...]
    attached: tuple[nn.Parameter, ...] = ()
    """Norms and biases."""

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """All of them."""
        return (*self.weights, *self.attached)


def units_of(model: nn.Module, layers: Sequence[Layer]) -> list[Unit]:
    """Group the model's parameters by weight, in the order of ``layers``.

    Layers that share a parameter are one unit. Layers that are read from no parameter (packed
    integers) have none.
    """
    units = _weights(layers)
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
        replace(unit, attached=tuple(following.get(i, {}).values()))
        for i, unit in enumerate(units)
    ]


def first_and_last(model: nn.Module, units: Iterable[Unit]) -> tuple[str, ...]:
    """Names of the units where data enter and leave the model, by the order of its modules.

    Tied weights count at each place: a head that shares the embedding's weight is the last layer.
    Parameters that stand beside sub-modules without being called weight (class tokens, position
    tables) are no layers here.
    """
    names = {id(p): unit.name for unit in units for p in unit.weights}
    found = []
    for _, module in model.named_modules(remove_duplicate=False):
        alone = not any(True for _ in module.children()) or isinstance(module, ParametrizationList)
        for name, parameter in module._parameters.items():
            if id(parameter) in names and (alone or "weight" in name):
                found.append(names[id(parameter)])
    return (found[0], found[-1]) if found else ()


def _weights(layers: Sequence[Layer]) -> list[Unit]:
    """One unit per set of layers that share parameters, without attached."""
    units: list[Unit] = []
    place: dict[int, int] = {}
    for layer in layers:
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
    """What names begin with, up to where they part: ``attn.qkv`` for its three parts."""
    first, last = min(names), max(names)
    same = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return first[:same].rstrip(".[")


def _in_order(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Path of the owning module and parameter, for every parameter in the order of the modules."""
    return [
        (path, p)
        for path, module in model.named_modules()
        for p in module._parameters.values()
        if p is not None
    ]


def _nearest(path: str, place: int, weights: Sequence[tuple[str, int, int]]) -> int | None:
    """The unit that a parameter of the module at ``path`` follows; None without any weight.

    ``weights`` holds path, place and unit of every piece of a weight, in order.
    """
    around = path
    while True:
        inside = [
            (there, i)
            for p, there, i in weights
            if not around or p == around or p.startswith(f"{around}.")
        ]
        if inside:
            return next((i for there, i in reversed(inside) if there < place), inside[0][1])
        if not around:
            return None
        around = around.rpartition(".")[0]
