"""Windows one after the other, well spread, until more of them would hardly move alpha.

Dense grids measure every weight many times: 15 x 15 windows of half a matrix's sides hold 56 times
its weights. A few windows that lie far apart say nearly the same. The change that the windows not
yet taken would make is bounded by the spread among those taken (leave one window out in turn), as
for a sample without replacement. Windows far apart share the fewest weights, so they spread more
than neighbours do, and the bound errs towards more windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from spectail.core.cutoffs import Cutoff
from spectail.core.jackknife import jackknife_variance, tail_alpha
from spectail.core.spec import Spec

Array: TypeAlias = NDArray[np.float64]
Position: TypeAlias = tuple[int, int]

FIRST = 4
"""Windows taken before the first look: on a grid, the four corners."""
GROWTH = 1.5
"""Every further look comes after this many times the windows of the last one."""
CONFIDENCE = 0.9


def enough_windows(
    positions: Sequence[Position],
    eigenvalues: Callable[[list[Position]], Array],
    zeros: Callable[[Array], NDArray[np.bool_]],
    spec: Spec,
) -> tuple[list[Position], Array]:
    """Return the positions taken and their eigenvalues, shape (positions, matrices, min(window)).

    ``eigenvalues`` computes those of the windows at some positions, ``zeros`` marks which of them
    are left out.

    Windows are added until the others would move alpha by less than ``spec.tolerance`` (a share of
    alpha) at 90 % two-sided confidence, or none is left. The choice depends on the weights and the
    placement only, not on chance.
    """
    assert spec.tolerance is not None
    order = spread_order(positions)
    taken: list[Position] = []
    found: list[Array] = []
    while len(taken) < len(positions):
        wanted = max(FIRST, math.ceil(GROWTH * len(taken))) - len(taken)
        new = [positions[i] for i in islice(order, wanted)]
        taken += new
        found.append(eigenvalues(new))
        so_far = np.concatenate(found)
        if (
            _change_of_the_rest(so_far, zeros(so_far), len(positions), spec.cutoff)
            <= spec.tolerance
        ):
            break
    return taken, np.concatenate(found)


def spread_order(positions: Sequence[Position]) -> Iterator[int]:
    """Indices of the positions: first the first, then always the one farthest from all before it (the first of equals).

    >>> list(spread_order([(0, 0), (0, 5), (0, 10), (10, 0), (10, 10)]))
    [0, 4, 2, 3, 1]
    """
    places = np.asarray(positions, dtype=np.float64)
    distance = np.full(len(places), np.inf)
    for _ in range(len(places)):
        chosen = int(np.argmax(distance))
        yield chosen
        distance = np.minimum(distance, ((places - places[chosen]) ** 2).sum(axis=1))
        distance[chosen] = -1.0


def _change_of_the_rest(found: Array, zero: NDArray[np.bool_], total: int, cutoff: Cutoff) -> float:
    """Half width of the 90 % interval of alpha over all ``total`` windows, given some of them, as a share of alpha."""
    count = found.shape[0]
    if count < 2:
        return math.inf
    group = np.broadcast_to(np.arange(count)[:, None, None], found.shape)[~zero]
    values = found[~zero]
    order = np.argsort(values, kind="stable")
    values, group = values[order], group[order]
    variance = jackknife_variance(values, group, count, cutoff) * (1 - count / total)
    quantile = float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
    half_width = quantile * math.sqrt(variance) / tail_alpha(values, cutoff)
    return half_width if math.isfinite(half_width) else math.inf
