"""Measure windows one after the other until further windows would hardly move alpha.

Dense grids measure every weight many times: 15 x 15 windows of half a matrix's sides hold 56 times
its weights. A few windows that lie far apart give nearly the same alpha. The change that the
remaining windows would make is estimated from the spread among those taken (each left out in turn),
as for a sample without replacement. Windows that lie far apart share the fewest weights, so they
spread more than neighbours do, and the rule takes too many windows rather than too few.
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
"""Windows taken before the first check: on a grid, the four corners."""
GROWTH = 1.5
"""Factor by which the number of windows grows from one check to the next."""
CONFIDENCE = 0.9
"""Two-sided confidence level of the estimated change."""


def enough_windows(
    positions: Sequence[Position],
    eigenvalues: Callable[[list[Position]], Array],
    zeros: Callable[[Array], NDArray[np.bool_]],
    spec: Spec,
) -> tuple[list[Position], Array]:
    """Return the positions taken and their eigenvalues, shape (positions, matrices, min(window)).

    ``eigenvalues`` computes the eigenvalues of the windows at some positions; ``zeros`` marks the
    ones to leave out.

    Windows are added until the others would move alpha by less than ``spec.tolerance`` (a share of
    alpha) at 90 % two-sided confidence, or until none is left. The choice depends on the weights
    and the placement only; nothing is random.
    """
    assert spec.tolerance is not None
    order = spread_order(positions)
    taken: list[Position] = []
    found: list[Array] = []
    while len(taken) < len(positions):
        # Growing by a factor keeps the total cost of the refits proportional to the last one.
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
    """Yield indices of positions, each the farthest from all before it, starting with the first.

    Of equally far positions the first is taken.

    >>> list(spread_order([(0, 0), (0, 5), (0, 10), (10, 0), (10, 10)]))
    [0, 4, 2, 3, 1]
    """
    # distance holds each position's squared distance to the nearest one chosen so far.
    places = np.asarray(positions, dtype=np.float64)
    distance = np.full(len(places), np.inf)
    for _ in range(len(places)):
        chosen = int(np.argmax(distance))
        yield chosen
        distance = np.minimum(distance, ((places - places[chosen]) ** 2).sum(axis=1))
        distance[chosen] = -1.0  # below every other distance, so it is never chosen again


def _change_of_the_rest(found: Array, zero: NDArray[np.bool_], total: int, cutoff: Cutoff) -> float:
    """Estimate how far the windows not yet taken could move alpha, as a share of alpha.

    It is half the width of the 90 % confidence interval of alpha over all ``total`` windows.
    ``found`` has the shape (windows taken, matrices, eigenvalues).
    """
    count = found.shape[0]
    if count < 2:
        return math.inf
    # All matrices of a position form one group: they are left out together.
    group = np.broadcast_to(np.arange(count)[:, None, None], found.shape)[~zero]
    values = found[~zero]
    order = np.argsort(values, kind="stable")
    values, group = values[order], group[order]
    # 1 - count / total: correction for sampling without replacement from a finite population.
    variance = jackknife_variance(values, group, count, cutoff) * (1 - count / total)
    quantile = float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
    half_width = quantile * math.sqrt(variance) / tail_alpha(values, cutoff)
    return half_width if math.isfinite(half_width) else math.inf
