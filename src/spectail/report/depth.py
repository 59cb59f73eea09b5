"""Where a layer lies along a model's depth: one place per block, and one per layer elsewhere.

In a model with one stack of blocks, the places are the block indices. Layers before the first block
get -1, -2, ... and layers after the last block continue the count. Several stacks (an encoder and a
decoder, the stages of a ResNet) are counted one after the other, because equal indices in two
stacks are different blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spectail.models.naming.blocks import u_shaped, unit_of


@dataclass(frozen=True)
class Depth:
    """The places of layers on an axis, with the labels of the places and the axis title."""

    places: tuple[int, ...]
    """One per layer."""
    labels: dict[int, str]
    """Label of every place: the block, or the end of the name of a layer that lies in no block."""
    title: str
    outside: frozenset[int] = frozenset()
    """Places of layers that lie in no block."""

    def ticks(self, most: int = 14) -> tuple[list[int], list[str]]:
        """Return about ``most`` evenly spaced places of blocks, and their labels."""
        shown = _thinned(sorted(set(self.labels) - self.outside), most)
        return shown, [self.labels[place] for place in shown]

    def names(self, most: int = 14) -> list[tuple[int, str]]:
        """Return the places of layers in no block, at most about ``most``, with their labels."""
        return [(place, self.labels[place]) for place in _thinned(sorted(self.outside), most)]


def _thinned(places: list[int], most: int) -> list[int]:
    """Return about ``most`` of the places, evenly spaced from the first on."""
    # -(-a // b) rounds up.
    step = max(1, -(-len(places) // most))
    return [place for place in places if (place - places[0]) % step == 0]


def stack_of(name: str, block: int | None) -> str | None:
    """Return the name before the block's index; None for a layer in no block.

    >>> stack_of("model.layers.3.mlp", 3)
    'model.layers'
    """
    if block is None:
        return None
    # The stacks of a U-Net are one stack, whose blocks are numbered through.
    if found := u_shaped(unit_of(name) or ""):
        return found[0].rstrip(".")
    # Names of some formats do not contain the index; their stack has no name then.
    parts = name.split(".")
    return ".".join(parts[: parts.index(str(block))]) if str(block) in parts else ""


def depth_of(layers: Sequence[tuple[str, int | None]]) -> Depth:
    """Place layers that are given as (name, block) in the model's order."""
    # A unit is a block of a stack, or a layer in no block; it counts once, where it first appears.
    units: dict[tuple[str | None, int | str], int] = {}
    keys: list[tuple[str | None, int | str]] = []
    for name, block in layers:
        stack = stack_of(name, block)
        key = (stack, name if block is None else block)
        units.setdefault(key, len(units))
        keys.append(key)
    stacks = {stack for stack, _ in units if stack is not None}
    # Block indices are places only where they are unique and stand together.
    if len(stacks) == 1:
        single = _one_stack(list(units))
        if single is not None:
            labels = {
                place: str(place) if key[0] is not None else _ending(key[1])
                for key, place in single.items()
            }
            outside = frozenset(place for key, place in single.items() if key[0] is None)
            return Depth(tuple(single[key] for key in keys), labels, "block", outside)
    labels = {place: _label(*key, place=place, stacks=len(stacks)) for key, place in units.items()}
    alone = [place for (stack, _), place in units.items() if stack is None and stacks]
    return Depth(
        tuple(units[key] for key in keys),
        labels,
        "block, in the model's order" if stacks else "layer",
        frozenset(alone),
    )


def _ending(name: int | str) -> str:
    """Return the last part of a layer's name, at most 14 characters of it."""
    last = str(name).rsplit(".", 1)[-1]
    return last if len(last) <= 14 else f"{last[:13]}\u2026"


def _label(stack: str | None, unit: int | str, *, place: int, stacks: int) -> str:
    """Label a place by its block, and by its stack too if there are several."""
    if stack is None:
        return _ending(unit) if stacks else str(place)
    return f"{stack.split('.')[-1]}.{unit}" if stacks > 1 and stack else str(unit)


def _one_stack(
    units: list[tuple[str | None, int | str]],
) -> dict[tuple[str | None, int | str], int] | None:
    """Place blocks at their own index; None if other layers lie between the blocks."""
    # Other layers between blocks (DenseNet's transitions) need places of their own.
    inside = [i for i, (stack, _) in enumerate(units) if stack is not None]
    first, last = inside[0], inside[-1]
    if inside != list(range(first, last + 1)):
        return None
    blocks = {unit: int(unit[1]) for unit in units[first : last + 1]}
    lowest, highest = min(blocks.values()), max(blocks.values())
    before = {unit: lowest - first + i for i, unit in enumerate(units[:first])}
    after = {unit: highest + 1 + i for i, unit in enumerate(units[last + 1 :])}
    return before | blocks | after
