"""The block that a layer belongs to, read from its name. No torch."""

from __future__ import annotations

import re

_IN_CONTAINER = re.compile(
    r"(?:^|\.)(?:h|blk|stages|layer\d+|\w*(?:layers|layer|blocks|block|convs|skips))\.(\d+)(?=\.|$)"
)
"""A container of repeated units, followed by the number of the unit."""
_NUMBERED = re.compile(r"(?:^|\.)([^.]+)\.(\d+)(?=\.)")
"""Any numbered module that has named layers below it."""
_FLAX = re.compile(r"(?:^|\.)(?:encoderblock|decoderblock|layers)_(\d+)(?=\.)")
"""How Flax names the blocks of ViT and T5: the number is part of the module's own name."""
_NOT_REPEATED = re.compile(
    r"^(?:mlp|fc|classifier|head|heads|conv|net|proj|projector|to_out|downsample|act|expert"
    r"|experts|adapters?|lora_\w+)$"
)
"""Numbered modules that are no blocks: the layers of an MLP, experts, adapters."""


def block_of(name: str) -> int | None:
    """Return the index of the block that a layer belongs to, or None outside all blocks.

    A block is one repeated unit of a network, such as a transformer layer. Its index is the first
    number below a usual container (``layers``, ``h``, ``blocks``...). Without such a container it
    is the first number that has named layers below it: ``features.3`` is a layer itself, while
    ``features.3.conv`` lies in block 3. Networks that count anew in each stage (``layer2.0``) use
    one index several times: see :func:`unit_of`.

    >>> block_of("model.layers.3.mlp.experts.7.w1"), block_of("lm_head")
    (3, None)
    """
    match = _block_match(name)
    return int(match[match.lastindex or 1]) if match else None


def unit_of(name: str) -> str | None:
    """Return the full name of the block that a layer belongs to, or None outside all blocks.

    The name tells blocks with the same index apart, such as ``encoder.layer.0`` and
    ``decoder.layer.0``.
    """
    match = _block_match(name)
    return name[: match.end()] if match else None


def _block_match(name: str) -> re.Match[str] | None:
    """Find the component of the name that holds the block's number."""
    if match := _IN_CONTAINER.search(name):
        return match
    # ``mlp.0`` and ``classifier.6`` number the layers of a small network, not blocks.
    match = _NUMBERED.search(name)
    if match and not _NOT_REPEATED.match(match[1]):
        return match
    return _FLAX.search(name)
