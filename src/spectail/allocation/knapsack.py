"""The multiple-choice knapsack behind bit widths: one choice per item, least total cost within a total weight.

Costs are convex in the width, so a greedy walk over all single steps solves the relaxed problem and
leaves a small gap. Items that no better solution can change are then fixed (by their reduced cost
against that gap), and integer programming decides the rest; it sees numbers of one scale, whatever
the range of the costs.
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
"""Seconds for the integer program; past them the best solution so far stands, with its gap."""
_PARTS = 1e6
"""The gap in the solver's units: HiGHS takes what is within 1e-6 for the same."""
_ROUNDING = 1e-13
"""Relative gap below which two totals of costs cannot be told apart."""


@dataclass(frozen=True)
class _Problem:
    costs: Array
    """(items, choices), falling and convex along the choices"""
    numel: Integers
    choices: Integers
    """Ascending widths"""
    capacity: int
    """Largest sum of numel times width"""

    def weight(self, picks: Integers) -> int:
        return int(self.numel @ self.choices[picks])

    def total(self, picks: Integers) -> float:
        return math.fsum(self.costs[np.arange(picks.size), picks])


def choose(
    costs: Array, numel: Integers, *, choices: Sequence[int], budget: float
) -> tuple[Array, float]:
    """A width per item with the least sum of ``costs`` (items, choices) and a mean up to ``budget``, by numel.

    Returns the widths and the relative gap to the least sum that was left open, 0 where it is
    proved.

    >>> choose(np.array([[4.0, 1.0], [2.0, 0.5]]), np.array([1, 1]), choices=(1, 2), budget=1.5)
    (array([2., 1.]), 0.0)
    """
    widths = np.array(choices, dtype=np.int64)
    divisor = int(np.gcd.reduce(numel))
    problem = _Problem(
        costs, numel // divisor, widths, _capacity(int(numel.sum()), budget, divisor)
    )
    picks, price = _walk(problem, np.zeros(numel.size, dtype=np.int64))
    bound, reduced = _relaxed(problem, price)
    gap = problem.total(picks) - bound
    open_gap = 0.0
    if gap > _ROUNDING * problem.total(picks):
        picks, open_gap = _improve(problem, picks, reduced, gap)
    return widths[picks].astype(np.float64), open_gap


def _capacity(total: int, budget: float, divisor: int) -> int:
    """The largest whole weight whose quotient with the total, as a float, is at most the budget."""
    most = math.floor(budget * total) + 1
    while most / total > budget:
        most -= 1
    return most // divisor


def _walk(problem: _Problem, picks: Integers) -> tuple[Integers, float]:
    """From ``picks``, take steps that fit, those that save most per weight first; the price where one did not fit.

    A later step of an item waits for its earlier ones, which convex costs put first.
    """
    n = problem.numel.size
    growth = np.diff(problem.choices)
    weights = problem.numel[:, None] * growth
    saved = -np.diff(problem.costs, axis=1) / weights
    picks = picks.copy()
    room = problem.capacity - problem.weight(picks)
    price = 0.0
    # Earlier steps of an item first where rounding makes savings equal: the sort is stable and goes
    # column by column.
    order = np.argsort(-saved.T.ravel(), kind="stable")
    for step, item in zip(*np.divmod(order, n), strict=True):
        if picks[item] != step:
            continue
        if weights[item, step] <= room:
            picks[item] += 1
            room -= int(weights[item, step])
        elif price == 0.0:
            price = float(saved[item, step])
    return picks, price


def _relaxed(problem: _Problem, price: float) -> tuple[float, Array]:
    """Lower bound on the least cost at a price per weight, and what each choice costs above its item's best."""
    charged = problem.costs + price * problem.numel[:, None] * problem.choices
    best = charged.min(axis=1)
    return math.fsum([*best, -price * problem.capacity]), charged - best[:, None]


def _improve(
    problem: _Problem, picks: Integers, reduced: Array, gap: float
) -> tuple[Integers, float]:
    """The best solution, by integer programming over the choices whose reduced cost is within the gap."""
    candidates = reduced <= gap * (1 + 1e-9)
    candidates[np.arange(picks.size), picks] = True
    core = np.flatnonzero(candidates.sum(axis=1) > 1)
    if core.size == 0:
        return picks, 0.0
    lowest = picks.copy()
    lowest[core] = candidates[core].argmax(axis=1)
    item, choice = np.nonzero(candidates[core])
    # Above the lowest candidate of each item, in parts of the gap: numbers of one scale, whatever
    # the model's.
    weights = problem.numel[core][item] * (
        problem.choices[choice] - problem.choices[lowest[core][item]]
    )
    costs = (
        problem.costs[core][item, choice] - problem.costs[core[item], lowest[core][item]]
    ) / gap
    found = _solve(costs, weights, item, room=problem.capacity - problem.weight(lowest))
    open_gap = gap / problem.total(picks)
    if found.x is None:
        return picks, open_gap
    better = lowest.copy()
    chosen = found.x > 0.5
    better[core[item[chosen]]] = choice[chosen]
    if problem.weight(better) > problem.capacity:
        return picks, open_gap
    # The solver does not tell apart costs that are small beside the largest: let the walk use what
    # room is left.
    best = min(picks, _walk(problem, better)[0], key=problem.total)
    return best, 0.0 if found.status == 0 else open_gap


def _solve(costs: Array, weights: Integers, item: Integers, *, room: int) -> Any:
    """SciPy's integer program: one of each item's choices, least cost, total weight up to ``room``."""
    # Slow to import, and only bit widths need a solver.
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    one_each = coo_array((np.ones(item.size), (item, np.arange(item.size))))
    scale = max(1, int(weights.max()))
    return milp(
        costs,
        integrality=np.ones(item.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(weights[None] / scale, -np.inf, room / scale),
        ],
        options={"mip_rel_gap": 0.0, "time_limit": TIME_LIMIT},
    )
