"""Convolutions and other weights of three and more dimensions.

- A convolution is stored as (out, in / groups, *kernel); every kernel position is one matrix, and
  all of them pool into one layer. The number of groups is not visible in a checkpoint, so live
  modules keep the stored shape too: a depth-wise convolution has one column. A transposed
  convolution, (in, out / groups, *kernel), cannot be told from a plain one in a checkpoint, so it
  keeps its stored orientation as well.
- A convolution's parameter is always called ``weight``. What is called otherwise, in three
  dimensions, is a *stack* of independent matrices, each a part ``[i]`` in its stored orientation.
"""

from __future__ import annotations

import math
import re

from spectail.models.layout.arrange import kernel_slices
from spectail.models.layout.part import Part
from spectail.models.layout.view import View
from spectail.models.naming.blocks import kind_of

LONGEST_KERNEL = 32
"""A last dimension up to this is a kernel of a one-dimensional convolution, whatever the other
dimensions."""

_STACKS = re.compile(r"(?:^|\.)codebooks_head\.weight$")
"""Parameters called weight that no convolution owns."""


def convolution_or_stack(view: View) -> tuple[Part, ...] | None:
    """Three and more dimensions: a convolution, or independent matrices one behind the other."""
    if len(view.shape) < 3:
        return None
    if view.stored.layout == "conv" or len(view.shape) > 3 or _is_kernel(view):
        return (convolution(view),)
    return _stack(view)


def _is_kernel(view: View) -> bool:
    """Whether (a, b, c) is a one-dimensional convolution.

    The last dimension is short, or there is one input channel (raw audio), or there are more
    outputs than kernel positions (the positional convolution of wav2vec 2.0, 768 x 48 x 128).
    """
    if view.name.rpartition(".")[2] != "weight" or _STACKS.search(view.name):
        return False
    outputs, inputs, positions = view.shape
    return positions <= LONGEST_KERNEL or inputs == 1 or outputs >= positions


def convolution(view: View, kind: str = "conv") -> Part:
    """All kernel positions of a convolution, pooled."""
    positions = math.prod(view.shape[2:])
    return Part(view.layer, kind, positions, view.shape[0], view.shape[1], view.lead, kernel_slices)


def _stack(view: View) -> tuple[Part, ...]:
    """Independent matrices (n, ., .), as in home-made mixtures."""
    kind = kind_of(view.layer)
    return tuple(view.matrix(f"[{i}]", kind, (i,)) for i in range(view.shape[0]))
