"""The multiple-choice knapsack behind bit widths.

Every item (a unit) gets one choice (a format). The sum of costs is to be least, within a limit on
the sum of sizes (bits).

A greedy walk along the convex hull of every item's sizes and costs solves the relaxed problem,
which allows fractions of steps, up to a small gap. Reduced costs (Dantzig's, of linear programming)
show which choices a better solution may hold. Integer programming decides among these. Its numbers
are divided by the gap, so that it sees one scale whatever the range of the costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

TIME_LIMIT = 60.0
"""Seconds for the integer program; after them the best solution so far counts, with its gap."""
_ROUNDING = 1e-13
"""Relative gap below which two totals of costs cannot be told apart."""


@dataclass(frozen=True)
class _Problem:
    """What to choose for each item, at which cost and size."""

    costs: Array
    """Shape (items, choices); infinite where an item cannot have the choice."""
    sizes: Integers
    """Shape (items, choices)."""
    limit: int
    """Largest allowed sum of sizes."""

    def size(self, picks: Integers) -> int:
        """Return the sum of sizes; ``picks`` is the index of each item's choice."""
        return int(self.sizes[np.arange(picks.size), picks].sum())

    def total(self, picks: Integers) -> float:
        """Return the sum of costs."""
        return math.fsum(self.costs[np.arange(picks.size), picks])

    @cached_property
    def hulls(self) -> list[list[int]]:
        """The choices of each item on the lower convex hull of (size, cost), smallest first."""
        return [_hull(*row) for row in zip(self.sizes.tolist(), self.costs.tolist(), strict=True)]


def choose(costs: Array, sizes: Integers, limit: int) -> tuple[Integers, float]:
    """Return the index of a choice per item with the least sum of ``costs`` (items, choices).

    The sum of ``sizes`` (items, choices) is at most ``limit``, which must leave room for the
    smallest choice of every item. An infinite cost forbids a choice. The second result is how far
    the sum of costs may at most lie above the least one, relative to itself; 0 if it is proved to
    be the least.

    >>> choose(np.array([[4.0, 1.0], [2.0, 0.5]]), np.array([[1, 2], [1, 2]]), 3)
    (array([1, 0]), 0.0)
    """
    # Layer sizes share large factors; smaller numbers suit the solver, which works in floats.
    divisor = int(np.gcd.reduce(sizes, axis=None))
    problem = _Problem(costs, sizes // divisor, limit // divisor)
    picks, price = _walk(problem)
    bound, reduced = _relaxed(problem, price)
    # Without a gap the walk has reached the lower bound and is proved optimal.
    gap = problem.total(picks) - bound
    open_gap = 0.0
    # A smaller gap is rounding in the sums.
    if gap > _ROUNDING * problem.total(picks):
        picks, open_gap = _improve(problem, picks, reduced, gap)
    return picks, open_gap


def _hull(sizes: list[int], costs: list[float]) -> list[int]:
    """Return the choices on the lower convex hull, by size, as long as costs do not rise.

    A choice off the hull is never part of a solution of the relaxed problem.
    """
    order = sorted(
        (i for i, c in enumerate(costs) if c < math.inf), key=lambda i: (sizes[i], costs[i])
    )
    kept: list[int] = []
    for i in order:
        # Of two choices the smaller one wins, unless the larger one costs no more.
        if kept and (sizes[i] == sizes[kept[-1]] or costs[i] > costs[kept[-1]]):
            continue
        while len(kept) > 1 and _saving(sizes, costs, kept[-2], kept[-1]) < _saving(
            sizes, costs, kept[-1], i
        ):
            kept.pop()
        kept.append(i)
    return kept


def _saving(sizes: list[int], costs: list[float], one: int, two: int) -> float:
    """Return the cost that a step between two choices saves per size that it adds."""
    return (costs[one] - costs[two]) / (sizes[two] - sizes[one])


def _walk(problem: _Problem) -> tuple[Integers, float]:
    """Enlarge items step by step while there is room, where a step saves most cost per size first.

    Returns the picks, and the saving per size of the first step that did not fit. A later step of
    an item comes after its earlier ones, because hulls are convex.
    """
    picks = np.array([hull[0] for hull in problem.hulls], dtype=np.int64)
    room = problem.limit - problem.size(picks)
    price = 0.0
    for saved, _, item, one, two in _steps(problem):
        # An earlier step of this item did not fit, so that this one cannot be taken.
        if picks[item] != one:
            continue
        added = int(problem.sizes[item, two] - problem.sizes[item, one])
        if added <= room:
            picks[item] = two
            room -= added
        # The first step that fails sets the price; smaller steps after it may still fit.
        elif price == 0.0:
            price = saved
    return picks, price


def _steps(problem: _Problem) -> list[tuple[float, int, int, int, int]]:
    """Return all steps along the hulls, (saving per size, number, item, from, to), best first."""
    found = []
    for item, hull in enumerate(problem.hulls):
        sizes, costs = problem.sizes[item].tolist(), problem.costs[item].tolist()
        for number, (one, two) in enumerate(pairwise(hull)):
            found.append((_saving(sizes, costs, one, two), number, item, one, two))
    # If rounding makes savings equal, the earlier step of an item must come first.
    return sorted(found, key=lambda step: (-step[0], step[1], step[2]))


def _relaxed(problem: _Problem, price: float) -> tuple[float, Array]:
    """Return a lower bound on the least cost, and the reduced costs (items, choices).

    Lagrangian relaxation: size has a price instead of a limit, so that every item chooses for
    itself. A reduced cost is what a choice costs, price included, above the best of its item.
    """
    charged = problem.costs + price * problem.sizes
    best = charged.min(axis=1)
    return math.fsum([*best, -price * problem.limit]), charged - best[:, None]


def _improve(
    problem: _Problem, picks: Integers, reduced: Array, gap: float
) -> tuple[Integers, float]:
    """Improve ``picks`` by integer programming over the choices that a better solution may hold.

    Returns the best solution that was found and the relative gap that was left open.
    """
    candidates = _candidates(picks, reduced, gap)
    core = np.flatnonzero(candidates.sum(axis=1) > 1)
    if core.size == 0:
        return picks, 0.0
    # Costs and sizes count from the first candidate of each item.
    first = picks.copy()
    first[core] = candidates[core].argmax(axis=1)
    item, choice = np.nonzero(candidates[core])
    start = first[core][item]
    sizes = problem.sizes[core[item], choice] - problem.sizes[core[item], start]
    costs = (problem.costs[core[item], choice] - problem.costs[core[item], start]) / gap
    found = _solve(costs, sizes, item, room=problem.limit - problem.size(first))
    open_gap = gap / problem.total(picks)
    if found.x is None:
        return picks, open_gap
    better = first.copy()
    # Integer up to a tolerance of the solver.
    chosen = found.x > 0.5
    better[core[item[chosen]]] = choice[chosen]
    # The solver meets its constraints up to a tolerance only.
    if problem.size(better) > problem.limit:
        return picks, open_gap
    # It does not see costs that are small beside the largest: the room that is left is used.
    best = min(picks, _filled(problem, better), key=problem.total)
    return best, 0.0 if found.status == 0 else open_gap


def _filled(problem: _Problem, picks: Integers) -> Integers:
    """Use the room that is left, the step with the largest saving first.

    Steps that save nothing are taken too: they cannot harm.
    """
    picks, items = picks.copy(), np.arange(picks.size)
    while True:
        added = problem.sizes - problem.sizes[items, picks][:, None]
        saved = problem.costs[items, picks][:, None] - problem.costs
        useful = (saved > 0) | ((saved == 0) & (added > 0))
        saved[~useful | (added > problem.limit - problem.size(picks))] = -1.0
        item, choice = np.unravel_index(saved.argmax(), saved.shape)
        if saved[item, choice] < 0:
            return picks
        picks[item] = choice


def _candidates(picks: Integers, reduced: Array, gap: float) -> NDArray[np.bool_]:
    """Say which choices (items, choices) may be part of a solution that is better than ``picks``.

    A choice whose reduced cost exceeds the gap costs more than any improvement could bring.
    """
    # The factor allows for rounding in the reduced costs.
    candidates: NDArray[np.bool_] = reduced <= gap * (1 + 1e-9)
    candidates[np.arange(picks.size), picks] = True
    return candidates


def _solve(costs: Array, sizes: Integers, item: Integers, *, room: int) -> Any:
    """Solve the integer program by SciPy: one choice per item, total size at most ``room``.

    ``costs``, ``sizes`` and ``item`` have one entry per candidate; ``item`` is the item's number.
    """
    # Slow to import, and only bit widths need a solver.
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    one_each = coo_array((np.ones(item.size), (item, np.arange(item.size))))
    # HiGHS works in floats with absolute tolerances, so that sizes are scaled to at most 1.
    scale = max(1, int(np.abs(sizes).max()))
    return milp(
        costs,
        integrality=np.ones(item.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(sizes[None] / scale, -np.inf, room / scale),
        ],
        # Without this, HiGHS stops within 1e-4 of the optimum.
        options={"mip_rel_gap": 0.0, "time_limit": TIME_LIMIT},
    )
