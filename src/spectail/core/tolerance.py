"""Measure windows one after the other until further windows would hardly move alpha.

A few windows give nearly the alpha of all of them, if they share neither rows nor columns: the
entries of a weight matrix depend on each other along rows and along columns, so such windows are
nearly independent. They are taken in an order in which each shares as little as possible with those
before it. On tiles this is a Latin square: no band of rows or columns is visited twice before all
of them have been visited once. The windows of a dense grid share their entries with many others;
there the order looks random, so that those taken are a fair sample.

The change that the remaining windows would make is estimated from the spread among those taken
(each left out in turn), as for a sample without replacement. Windows in bands of their own spread
more than neighbours do, so the rule takes too many windows rather than too few. A handful of
windows can agree by chance. So their spread is never taken to be less than that of windows of
independent entries, which is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.cutoffs import Cutoff
from spectail.core.jackknife import jackknife_variance, tail_alpha
from spectail.core.spec import Spec
from spectail.core.windows import Window

Array: TypeAlias = NDArray[np.float64]
Position: TypeAlias = tuple[int, int]

FIRST = 4
"""Windows taken before the first check: the fewest whose spread says something."""
GROWTH = 1.5
"""Factor by which the number of windows grows from one check to the next."""
MOST_GROUPS = 64
"""More windows are left out in this many groups of about equal size: with single ones the time to
decide when to stop would grow with the square of their number."""
MOST_SPREAD = 1000
"""Windows whose place is chosen by those before. By then all bands have been visited often, and
the time would grow with the square of their number."""
MOST_SHARED = 4
"""How often windows hold an entry, in the mean, that are spread by what they share. Tiles hold it
less than twice along each side."""
CONFIDENCE = 0.9
"""Two-sided confidence level of the estimated change."""


def enough_windows(
    positions: Sequence[Position],
    window: Window,
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
    order, paired = spread_order(positions, window), _is_symmetric(positions)
    taken: list[Position] = []
    found: list[Array] = []
    while len(taken) < len(positions):
        # Growing by a factor keeps the total cost of the refits proportional to the last one.
        wanted = max(FIRST, math.ceil(GROWTH * len(taken))) - len(taken)
        new = [positions[i] for i in islice(order, wanted)]
        # In a square matrix a window and its mirror image come together: see spread_order.
        if paired and new[-1][::-1] not in {*taken, *new}:
            new.append(positions[next(order)])
        taken += new
        found.append(eigenvalues(new))
        if len(taken) == len(positions):
            break
        so_far = np.concatenate(found)
        least = _independent_spread(window, so_far, spec)
        if (
            _change_of_the_rest(so_far, zeros(so_far), len(positions), spec.cutoff, least)
            <= spec.tolerance
        ):
            break
    return taken, np.concatenate(found)


def spread_order(positions: Sequence[Position], window: Window) -> Iterator[int]:
    """Yield indices of positions, each sharing few rows and columns with all before it.

    It starts with the top left. Of positions that share equally much, the one farthest from all
    before it comes next; of equally far ones, the first along the shorter side. Where positions lie
    symmetrically to the diagonal, in a square matrix, each is followed by its mirror image. So a
    matrix and its transpose are measured in the same windows. After MOST_SPREAD of them the rest is
    scattered. So are all windows that hold every entry several times, as those of a dense grid do:
    there the middle counts as much as the edges, and each window shares much with all others.

    >>> list(spread_order([(0, 0), (0, 5), (5, 0), (5, 5)], Window(5, 5)))
    [0, 3, 1, 2]
    """
    corners = np.asarray(positions)
    rows, cols = np.ptp(corners, axis=0) + window
    symmetric = _is_symmetric(positions)
    if len(positions) * math.prod(window) > MOST_SHARED * rows * cols:
        yield from _scattered(corners, symmetric, rows > cols).tolist()
        return
    # Listed along the shorter side first, whichever it is. The last key is the first to sort by.
    listed = np.lexsort(corners.T if rows > cols else corners.T[::-1])
    places = corners[listed].astype(np.float64)
    index = {place: i for i, place in enumerate(map(tuple, places))}
    # The index of each position's mirror image; of its own where there is none.
    mirrors = [index[tuple(p[::-1])] if symmetric else i for i, p in enumerate(places)]
    # distance: squared distance to the nearest position chosen so far. shared: rows shared with
    # each of them, as a share of a window, plus the same for columns.
    distance, shared = np.full(len(places), np.inf), np.zeros(len(places))
    chosen = 0
    for _ in range(min(len(places), MOST_SPREAD)):
        mirror = mirrors[chosen]
        # Rounded, because equal sums of thirds may differ in their last bit.
        least = np.round(shared, 6)
        farthest = int(np.argmax(np.where(least == least.min(), distance, -np.inf)))
        chosen = mirror if np.isfinite(shared[mirror]) else farthest
        yield int(listed[chosen])
        apart = np.abs(places - places[chosen])
        distance = np.minimum(distance, (apart**2).sum(axis=1))
        shared += np.clip(1 - apart / window, 0, None).sum(axis=1)
        shared[chosen] = np.inf  # it is never chosen again
    mirror = mirrors[chosen]
    if np.isfinite(shared[mirror]):
        shared[mirror] = np.inf
        yield int(listed[mirror])
    rest = listed[np.isfinite(shared)]
    yield from rest[_scattered(corners[rest], symmetric, rows > cols)].tolist()


def _scattered(corners: NDArray[np.intp], symmetric: bool, tall: bool) -> NDArray[np.intp]:
    """Return an order of corners that looks random; mirror images follow each other."""
    along = corners[:, ::-1] if tall else corners
    low, high = np.sort(along, axis=1).T if symmetric else along.T
    # The finaliser of SplitMix64 (Steele, Lea and Flood 2014): the order depends on places alone.
    mixed = (low.astype(np.uint64) << np.uint64(32)) + high.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.lexsort((along[:, 0], high, low, mixed))


def _is_symmetric(positions: Sequence[Position]) -> bool:
    """Return whether the mirror image of every position, in the transpose, is a position too."""
    return {*positions} == {(left, top) for top, left in positions}


def _independent_spread(window: Window, found: Array, spec: Spec) -> float:
    """Return the standard deviation of alpha over as many windows of independent entries.

    It is 0 for cutoffs that search the start of the tail. There it would have to be simulated anew
    for each number of windows, and the windows taken spread far more than that.
    """
    if not spec.cutoff.smooth:
        return 0.0
    count = found.shape[0] * found.shape[1]
    return spec.cutoff.null(window, count, math.nan, spec.seed)[1]


def _change_of_the_rest(
    found: Array, zero: NDArray[np.bool_], total: int, cutoff: Cutoff, least_spread: float
) -> float:
    """Estimate how far the windows not yet taken could move alpha, as a share of alpha.

    It is half the width of the 90 % confidence interval of alpha over all ``total`` windows.
    ``found`` has the shape (windows taken, matrices, eigenvalues). ``least_spread`` is the least
    standard error that the windows taken may have.
    """
    count = found.shape[0]
    if count < 2:
        return math.inf
    # All matrices of a position are left out together.
    groups = min(count, MOST_GROUPS)
    number = np.arange(count) % groups
    group = np.broadcast_to(number[:, None, None], found.shape)[~zero]
    values = found[~zero]
    order = np.argsort(values, kind="stable")
    values, group = values[order], group[order]
    variance = max(jackknife_variance(values, group, groups, cutoff), least_spread**2)
    # 1 - count / total: correction for sampling without replacement from a finite population.
    variance *= 1 - count / total
    from scipy.special import stdtrit  # slow to import, and only a tolerance needs it

    quantile = float(stdtrit(groups - 1, 0.5 + CONFIDENCE / 2))
    half_width = quantile * math.sqrt(variance) / tail_alpha(values, cutoff)
    return half_width if math.isfinite(half_width) else math.inf
