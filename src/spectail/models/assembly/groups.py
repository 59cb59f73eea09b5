"""Which numbers share a scale: from a configuration, from the shapes, or from a stored order."""

from __future__ import annotations

import torch
from torch import Tensor

from spectail.errors import SourceError
from spectail.models.assembly.quantisation import Quantisation

COMMON_BLOCKS = (16, 32, 64, 128, 256)
"""Block lengths in use, whether or not they divide the dimension."""


def block_lengths(size: int, blocks: int) -> list[int]:
    """List the lengths that this number of blocks can have along one dimension.

    >>> block_lengths(512, 4), block_lengths(300, 3)
    ([128], [100, 128])
    """
    if blocks in {1, size}:
        return [size // max(1, blocks)]
    # The last block may be shorter, so a length need not divide the size.
    lengths = {length for length in COMMON_BLOCKS if -(-size // length) == blocks}
    if blocks and size % blocks == 0:
        lengths.add(size // blocks)
    return sorted(lengths)


def stated_lengths(quantisation: Quantisation, size: int, blocks: int) -> set[int]:
    """Return the group sizes of the configuration that give this number of groups."""
    if blocks == 1:
        return {size}
    sizes = {length for length in quantisation.stated("group_size") if length > 0}
    return {length for length in sizes if -(-size // length) == blocks}


def group_length(quantisation: Quantisation, size: int, blocks: int) -> int | None:
    """Return the length of all groups but the last, which may be shorter; None if it is unclear.

    320 inputs in 3 groups are groups of 128, 128 and 64, not of 107.

    >>> group_length(Quantisation(), 320, 3), group_length(Quantisation(), 300, 3)
    (128, None)
    >>> group_length(Quantisation(group_size=100), 300, 3)
    100
    """
    lengths = stated_lengths(quantisation, size, blocks) or block_lengths(size, blocks)
    return next(iter(lengths)) if len(lengths) == 1 else None


def group_of_inputs(order: Tensor, groups: int) -> Tensor:
    """Return the group of each input as an index of the scales.

    Raises:
        SourceError: there is no such group; torch would count a negative one from the end.

    """
    order = order.reshape(-1).to(torch.int64)
    least, most = int(order.min()), int(order.max())
    if least < 0 or most >= groups:
        raise SourceError(
            f"the order of its inputs (g_idx) names groups from {least} to {most}, and there are "
            f"{groups}: the file is damaged"
        )
    return order
