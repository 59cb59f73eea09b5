"""Rules that look at nothing but a block's place in depth: the control for rules that measure.

ATP (arXiv 2502.14770) gives ratios on a straight line over depth. The other forms here are the
simplest ones beside it. They read no weights, so a rule that measures something has to beat them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.errors import AllocationError

Array: TypeAlias = NDArray[np.float64]


def _rising(n: int) -> Array:
    return np.linspace(0.0, 1.0, n)


def _first(n: int) -> Array:
    return np.array([0.0, *np.ones(n - 1)])


def _first_and_last(n: int) -> Array:
    return np.minimum(_first(n), _first(n)[::-1])


def _first_then_rising(n: int) -> Array:
    return np.array([0.0, *np.linspace(0.5, 1.0, n - 1)])


def _first_then_falling(n: int) -> Array:
    return np.array([0.0, *np.linspace(1.0, 0.0, n - 1)])


FORMS: dict[str, Callable[[int], Array]] = {
    "rising": _rising,
    "falling": lambda n: _rising(n)[::-1],
    "first": _first,
    "last": lambda n: _first(n)[::-1],
    "first-last": _first_and_last,
    "first-rising": _first_then_rising,
    "first-falling": _first_then_falling,
}
"""The forms by name: from a number of blocks to a number from 0 to 1 for each, in order of depth.

A block with a higher number is pruned more. ``rising`` and ``falling`` are straight lines.
``first`` keeps the first block, ``last`` the last one, ``first-last`` both; the others are treated
alike. ``first-rising`` keeps the first block and lets the others rise over the upper half;
``first-falling`` keeps the first and lets the others fall over the whole range.
"""


_BLOCK = re.compile(r"(?P<stack>.*?)(?P<number>\d+)")
"""A block's name: ``model.layers.3``, or ``layer_3`` in Flax."""


def depth_scores(units: Sequence[str], form: str) -> Array:
    """Return a number from 0 to 1 per block, by its place in its own stack of blocks.

    ``units`` holds names of blocks such as ``model.layers.3``. An encoder and a decoder are two
    stacks, each with a first and a last block. A unit that is no block, and the only block of its
    stack, get 1/2.

    Raises:
        AllocationError: there is no such form.

    >>> depth_scores(["h.0", "h.1", "h.2"], "falling")
    array([1. , 0.5, 0. ])

    """
    if form not in FORMS:
        raise AllocationError(f"a form of depth must be one of {', '.join(FORMS)}, not {form!r}")
    stacks: dict[str, dict[int, list[int]]] = {}
    for place, unit in enumerate(units):
        if match := _BLOCK.fullmatch(unit):
            blocks = stacks.setdefault(match["stack"], {})
            # Several units may have one block's name: its layers, where each is a unit.
            blocks.setdefault(int(match["number"]), []).append(place)
    scores = np.full(len(units), 0.5)
    for blocks in stacks.values():
        # A block without neighbours is neither early nor late.
        if len(blocks) > 1:
            # By number and not by place in the list: files may hold block 10 before block 2.
            for number, score in zip(sorted(blocks), FORMS[form](len(blocks)), strict=True):
                scores[blocks[number]] = score
    return scores
