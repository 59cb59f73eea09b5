"""The multiple-choice knapsack behind bit widths.

Every item (a unit) gets one choice (a width). The sum of costs is to be least, within a limit on
the total weight (number of weights times width).

Costs are convex in the width, so a greedy walk over single steps solves the relaxed problem, which
allows fractions of steps, up to a small gap. Reduced costs (Dantzig's, of linear programming) show
which items keep their choice in every better solution. Integer programming decides the other items.
Its numbers are divided by the gap, so that it sees one scale whatever the range of the costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    """What to choose for each item, at which cost and weight."""

    costs: Array
    """Shape (items, choices); falling and convex along the choices."""
    numel: Integers
    """Number of weights of each item, divided by their greatest common divisor."""
    choices: Integers
    """Widths, ascending."""
    capacity: int
    """Largest allowed sum of numel times width."""

    def weight(self, picks: Integers) -> int:
        """Return the sum of numel times width; ``picks`` is the index of each item's choice."""
        return int(self.numel @ self.choices[picks])

    def total(self, picks: Integers) -> float:
        """Return the sum of costs."""
        return math.fsum(self.costs[np.arange(picks.size), picks])


def choose(
    costs: Array, numel: Integers, *, choices: Sequence[int], budget: float
) -> tuple[Array, float]:
    """Return a width per item with the least sum of ``costs`` (items, choices).

    The mean width, weighted by numel, is at most ``budget``. The second result is how far the sum
    may at most lie above the least one, relative to itself; 0 if it is proved to be the least.

    >>> choose(np.array([[4.0, 1.0], [2.0, 0.5]]), np.array([1, 1]), choices=(1, 2), budget=1.5)
    (array([2., 1.]), 0.0)
    """
    widths = np.array(choices, dtype=np.int64)
    # Layer sizes share large factors; smaller weights suit the solver, which works in floats.
    divisor = int(np.gcd.reduce(numel))
    problem = _Problem(
        costs, numel // divisor, widths, _capacity(int(numel.sum()), budget, divisor)
    )
    picks, price = _walk(problem, np.zeros(numel.size, dtype=np.int64))
    bound, reduced = _relaxed(problem, price)
    # Without a gap the walk has reached the lower bound and is proved optimal.
    gap = problem.total(picks) - bound
    open_gap = 0.0
    # A smaller gap is rounding in the sums.
    if gap > _ROUNDING * problem.total(picks):
        picks, open_gap = _improve(problem, picks, reduced, gap)
    return widths[picks].astype(np.float64), open_gap


def _capacity(total: int, budget: float, divisor: int) -> int:
    """Return the largest weight whose mean width is at most the budget, divided by ``divisor``.

    The mean is compared as a float, as a caller would compute it.
    """
    most = math.floor(budget * total) + 1
    # The product may be off by one unit in the last place, either way.
    while most / total > budget:
        most -= 1
    return most // divisor


def _walk(problem: _Problem, picks: Integers) -> tuple[Integers, float]:
    """Widen items step by step while there is room, where a step saves most cost per weight first.

    Returns the picks, and the saving per weight of the first step that did not fit. A later step of
    an item comes after its earlier ones, because costs are convex.
    """
    n = problem.numel.size
    growth = np.diff(problem.choices)
    weights = problem.numel[:, None] * growth
    # Cost that each step (item, step) saves per weight that it adds.
    saved = -np.diff(problem.costs, axis=1) / weights
    picks = picks.copy()
    room = problem.capacity - problem.weight(picks)
    price = 0.0
    # If rounding makes savings equal, the earlier step of an item must come first: the sort is
    # stable, and the transposed array lists all first steps before all second ones.
    order = np.argsort(-saved.T.ravel(), kind="stable")
    for step, item in zip(*np.divmod(order, n), strict=True):
        # An earlier step of this item did not fit, so that this one cannot be taken.
        if picks[item] != step:
            continue
        if weights[item, step] <= room:
            picks[item] += 1
            room -= int(weights[item, step])
        # The first step that fails sets the price; smaller steps after it may still fit.
        elif price == 0.0:
            price = float(saved[item, step])
    return picks, price


def _relaxed(problem: _Problem, price: float) -> tuple[float, Array]:
    """Return a lower bound on the least cost, and the reduced costs (items, choices).

    Lagrangian relaxation: weight has a price instead of a limit, so that every item chooses for
    itself. A reduced cost is what a choice costs, price included, above the best of its item.
    """
    charged = problem.costs + price * problem.numel[:, None] * problem.choices
    best = charged.min(axis=1)
    return math.fsum([*best, -price * problem.capacity]), charged - best[:, None]


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
    # Costs and weights count from the lowest candidate of each item.
    lowest = picks.copy()
    lowest[core] = candidates[core].argmax(axis=1)
    item, choice = np.nonzero(candidates[core])
    start = lowest[core][item]
    weights = problem.numel[core][item] * (problem.choices[choice] - problem.choices[start])
    costs = (problem.costs[core][item, choice] - problem.costs[core[item], start]) / gap
    found = _solve(costs, weights, item, room=problem.capacity - problem.weight(lowest))
    open_gap = gap / problem.total(picks)
    if found.x is None:
        return picks, open_gap
    better = lowest.copy()
    # Integer up to a tolerance of the solver.
    chosen = found.x > 0.5
    better[core[item[chosen]]] = choice[chosen]
    # The solver meets its constraints up to a tolerance only.
    if problem.weight(better) > problem.capacity:
        return picks, open_gap
    # It does not see costs that are small beside the largest: the walk uses the room that is left.
    best = min(picks, _walk(problem, better)[0], key=problem.total)
    return best, 0.0 if found.status == 0 else open_gap


def _candidates(picks: Integers, reduced: Array, gap: float) -> NDArray[np.bool_]:
    """Say which choices (items, choices) may be part of a solution that is better than ``picks``.

    A choice whose reduced cost exceeds the gap costs more than any improvement could bring.
    """
    # The factor allows for rounding in the reduced costs.
    candidates: NDArray[np.bool_] = reduced <= gap * (1 + 1e-9)
    candidates[np.arange(picks.size), picks] = True
    return candidates


def _solve(costs: Array, weights: Integers, item: Integers, *, room: int) -> Any:
    """Solve the integer program by SciPy: one choice per item, total weight at most ``room``.

    ``costs``, ``weights`` and ``item`` have one entry per candidate; ``item`` is the item's number.
    """
    # Slow to import, and only bit widths need a solver.
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    one_each = coo_array((np.ones(item.size), (item, np.arange(item.size))))
    # HiGHS works in floats with absolute tolerances, so that weights are scaled to at most 1.
    scale = max(1, int(weights.max()))
    return milp(
        costs,
        integrality=np.ones(item.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(weights[None] / scale, -np.inf, room / scale),
        ],
        # Without this, HiGHS stops within 1e-4 of the optimum.
        options={"mip_rel_gap": 0.0, "time_limit": TIME_LIMIT},
    )
