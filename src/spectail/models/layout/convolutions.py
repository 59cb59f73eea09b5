"""Convolutions and other weights of three and more dimensions.

- A convolution is stored as (out, in / groups, *kernel). Every kernel position is one matrix, and
  all of them together are one layer. A checkpoint does not show the number of groups, so live
  modules keep the stored shape too: a depth-wise convolution has one column. A checkpoint does not
  show either whether a convolution is a transposed one, (in, out / groups, *kernel), so that keeps
  its stored orientation as well.
- The parameter of a convolution is always called ``weight``. A three-dimensional parameter with
  another name is a *stack* of independent matrices, each a part ``[i]`` in its stored orientation.
"""

from __future__ import annotations

import math
import re

from spectail.models.layout.arrange import kernel_slices
from spectail.models.layout.part import Part
from spectail.models.layout.view import View
from spectail.models.naming.kinds import kind_of

LONGEST_KERNEL = 32
"""A last dimension up to this length is the kernel of a one-dimensional convolution, whatever the
other dimensions."""

_STACKS = re.compile(r"(?:^|\.)codebooks_head\.weight$")
"""Parameters that are called ``weight`` although they belong to no convolution."""


def convolution_or_stack(view: View) -> tuple[Part, ...] | None:
    """Describe a tensor of three or more dimensions: a convolution, or a stack of matrices."""
    if len(view.shape) < 3:
        return None
    # Four and more dimensions are always a convolution; three need a closer look.
    if view.stored.layout == "conv" or len(view.shape) > 3 or _is_kernel(view):
        return (convolution(view),)
    return _stack(view)


def _is_kernel(view: View) -> bool:
    """Whether a tensor (out, in, positions) is a one-dimensional convolution.

    It is one if the last dimension is short, if there is one input channel (raw audio), or if there
    are at least as many outputs as kernel positions (the positional convolution of wav2vec 2.0, 768
    x 48 x 128).
    """
    if view.name.rpartition(".")[2] != "weight" or _STACKS.search(view.name):
        return False
    outputs, inputs, positions = view.shape
    # A stack of matrices called ``weight`` has fewer entries than columns.
    return positions <= LONGEST_KERNEL or inputs == 1 or outputs >= positions


def convolution(view: View, kind: str = "conv") -> Part:
    """Describe a convolution as one layer with a matrix for each kernel position."""
    positions = math.prod(view.shape[2:])
    return Part(view.layer, kind, positions, view.shape[0], view.shape[1], view.lead, kernel_slices)


def _stack(view: View) -> tuple[Part, ...]:
    """Describe independent matrices (n, rows, cols), as home-made expert layers store them."""
    kind = kind_of(view.layer)
    return tuple(view.matrix(f"[{i}]", kind, (i,)) for i in range(view.shape[0]))
