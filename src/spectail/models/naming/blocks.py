"""The block that a layer belongs to, read from its name. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

_IN_CONTAINER = re.compile(
    r"(?:^|\.)(?:h|blk|stages|layer\d+|\w*(?:layers|layer|blocks|block|convs|skips))\.(\d+)(?=\.|$)"
)
"""A container of repeated units, followed by the number of the unit."""
_NUMBERED = re.compile(r"(?:^|\.)([^.]+)\.(\d+)(?=\.)")
"""Any numbered module that has named layers below it."""
_FLAX = re.compile(r"(?:^|\.)(?:encoderblock|decoderblock|layers)_(\d+)(?=\.)")
"""How Flax names the blocks of ViT and T5: the number is part of the module's own name."""
_MIDDLE = re.compile(r"(?:^|\.)(?:mid_block|middle_block)(?=\.)")
"""The one block in the middle of a U-Net, which has no number."""
_U_SHAPED = re.compile(
    r"(?P<before>.*?)(?:(?P<down>down|input)_blocks|(?P<mid>mid|middle)_block"
    r"|(?P<up>up|output)_blocks)(?:\.(?P<number>\d+))?"
)
"""The name of a block of a U-Net: its stacks are parts of one stack."""
_NOT_REPEATED = re.compile(
    r"^(?:mlp|fc|classifier|head|heads|conv|net|proj|projector|to_out|downsample|act|expert"
    r"|experts|adapters?|lora_\w+)$"
)
"""Numbered modules that are no blocks: the layers of an MLP, experts, adapters."""
_NO_INDEX = re.compile(r"\d{10}")
"""A number that is no index of a block; tables hold integers of 64 bits."""


def block_of(name: str) -> int | None:
    """Return the index of the block that a layer belongs to, or None outside all blocks.

    A block is one repeated unit of a network, such as a transformer layer. Its index is the first
    number below a usual container (``layers``, ``h``, ``blocks``...). Without such a container it
    is the first number that has named layers below it: ``features.3`` is a layer itself, while
    ``features.3.conv`` lies in block 3. Networks that count anew in each stage (``layer2.0``) use
    one index several times: see :func:`unit_of`. So do the stacks of a U-Net by their names alone:
    see :func:`block_numbers`.

    >>> block_of("model.layers.3.mlp.experts.7.w1"), block_of("lm_head")
    (3, None)
    """
    match = _block_match(name)
    if match is None:
        return None
    return int(match[match.lastindex]) if match.lastindex else 0


def unit_of(name: str) -> str | None:
    """Return the full name of the block that a layer belongs to, or None outside all blocks.

    The name tells blocks with the same index apart, such as ``encoder.layer.0`` and
    ``decoder.layer.0``.
    """
    match = _block_match(name)
    return name[: match.end()] if match else None


def block_numbers(names: Iterable[str]) -> dict[str, int | None]:
    """Return the block of every layer of a model; the stacks of a U-Net continue each other.

    >>> block_numbers(["down_blocks.0.conv", "mid_block.conv", "up_blocks.0.conv", "conv_in"])
    {'down_blocks.0.conv': 0, 'mid_block.conv': 1, 'up_blocks.0.conv': 2, 'conv_in': None}
    """
    places = {name: u_shaped(unit) if (unit := unit_of(name)) else None for name in names}
    sizes: dict[tuple[str, int], int] = {}
    for place in filter(None, places.values()):
        before, stage, number = place
        sizes[before, stage] = max(sizes.get((before, stage), 0), number + 1)
    return {
        name: block_of(name)
        if place is None
        else place[2] + sum(sizes.get((place[0], stage), 0) for stage in range(place[1]))
        for name, place in places.items()
    }


def u_shaped(unit: str) -> tuple[str, int, int] | None:
    """Split the name of a block of a U-Net; None for the name of any other block.

    Returns what stands before it, its stack (0 down, 1 middle, 2 up) and its number in the stack.

    >>> u_shaped("unet.up_blocks.1"), u_shaped("model.layers.1")
    (('unet.', 2, 1), None)
    """
    match = _U_SHAPED.fullmatch(unit)
    if match is None:
        return None
    stage = 0 if match["down"] else 1 if match["mid"] else 2
    return match["before"], stage, int(match["number"] or 0)


def _block_match(name: str) -> re.Match[str] | None:
    """Find the component of the name that holds the block's number."""
    match = _any_match(name)
    return None if match is None or _NO_INDEX.search(match[0]) else match


def _any_match(name: str) -> re.Match[str] | None:
    """Find the component that looks as if it held a number of a block."""
    inside, middle = _IN_CONTAINER.search(name), _MIDDLE.search(name)
    # The blocks inside of the middle block are parts of it.
    if middle and (inside is None or middle.start() <= inside.start()):
        return middle
    if inside:
        return inside
    # ``mlp.0`` and ``classifier.6`` number the layers of a small network, not blocks.
    match = _NUMBERED.search(name)
    if match and not _NOT_REPEATED.match(match[1]):
        return match
    return _FLAX.search(name)
