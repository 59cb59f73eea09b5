"""Rules that look at nothing but a block's place in depth: the control for rules that measure.

ATP (arXiv 2502.14770) gives ratios on a straight line over depth. The other forms here are the
simplest ones beside it. They read no weights, so a rule that measures something has to beat them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.errors import AllocationError
from spectail.results.depth import place_of

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


def depth_scores(units: Sequence[str | None], form: str, *, blocks: Iterable[str] = ()) -> Array:
    """Return a number from 0 to 1 per unit, by the place of its block in its own stack.

    ``units`` holds names of blocks such as ``model.layers.3``, and None for a layer that lies in no
    block. An encoder and a decoder are two stacks, each with a first and a last block; the stages
    of a ResNet are one (``results.depth``). ``blocks`` are all blocks of the model: the second one
    is not the first if that takes no part. Layers in no block, and the only block of a stack, get
    1/2.

    Raises:
        AllocationError: there is no such form.

    >>> depth_scores(["h.0", "h.1", "h.2"], "falling")
    array([1. , 0.5, 0. ])

    """
    if form not in FORMS:
        raise AllocationError(f"a form of depth must be one of {', '.join(FORMS)}, not {form!r}")
    # By number and not by place in the list: files may hold block 10 before block 2.
    stacks: dict[str, set[tuple[int, int]]] = {}
    for unit in (*blocks, *units):
        if unit is not None and (place := place_of(unit)):
            stacks.setdefault(place[0], set()).add(place[1:])
    scores: dict[tuple[str, int, int] | None, float] = {
        (stack, *place): float(score)
        for stack, places in stacks.items()
        # A block without neighbours is neither early nor late.
        if len(places) > 1
        for place, score in zip(sorted(places), FORMS[form](len(places)), strict=True)
    }
    return np.array([scores.get(place_of(unit), 0.5) if unit else 0.5 for unit in units])
