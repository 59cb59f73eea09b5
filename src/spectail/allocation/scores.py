"""Scores: what the sparsity of a unit goes by: alpha, variance, its place in depth, or a sum.

A higher score means a higher ratio. A score is written as its parts joined by ``+``: ``alpha``,
``alpha+variance``, ``depth:falling``, ``ends+alpha``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.allocation.depth import FORMS, depth_scores
from spectail.allocation.units import Units
from spectail.errors import AllocationError
from spectail.models.naming.blocks import unit_of

Array: TypeAlias = NDArray[np.float64]

KEPT = {"first": "first", "ends": "first-last"}
"""What may be written in front of other parts, and the form of depth that it stands for.

``first+alpha`` prunes the first block of every stack least of all and the others by alpha;
``ends+alpha`` does the same with the first block and the last one.
"""


def _variance(units: Units) -> Array:
    if not (np.isfinite(units.variance) & (units.variance > 0)).all():
        raise AllocationError(
            "by variance needs layers of known variance above 0: exclude layers of equal weights"
        )
    # Large weights are kept; the logarithm, because variances differ by powers of ten.
    return -np.log(units.variance)


PARTS: dict[str, Callable[[Units], Array]] = {
    "alpha": lambda units: units.alpha,
    "variance": _variance,
    **{
        f"depth:{form}": lambda units, form=form: _depth(units, form)  # type: ignore[misc]
        for form in FORMS
    },
}
"""The parts of a score by name."""


def check_by(by: object) -> str:
    """Return the text of a score; AllocationError if it is none."""
    names = by.split("+") if isinstance(by, str) and by not in PARTS else [by]
    if names[0] in KEPT:
        names = names[1:]
    if not names or any(name not in PARTS for name in names) or len(set(names)) < len(names):
        raise AllocationError(
            f"by must be {', '.join(PARTS)}, or several joined by +, with first+ or ends+ in front "
            f"to keep the first block, or the first and the last, not {by!r}"
        )
    return str(by)


def needs_alpha(by: str) -> bool:
    """Whether a score looks at alpha."""
    return "alpha" in by.split("+")


def scores_of(units: Units, by: str) -> Array:
    """Return one score per unit.

    A single part is taken as it is. Several are standardised (mean 0, standard deviation 1 over the
    units) and added. After ``first+`` the first block has the lowest score, and the others share
    the upper half of the range; after ``ends+`` the last block is kept like the first.
    """
    if by in PARTS:
        return PARTS[by](units)
    names = by.split("+")
    form = KEPT.get(names[0])
    parts = [PARTS[name](units) for name in (names[1:] if form else names)]
    found = parts[0] if len(parts) == 1 else np.sum([standardized(p) for p in parts], axis=0)
    return with_kept(found, _depth(units, form) == 0) if form else found


def standardized(values: Array) -> Array:
    """Return standard scores; zeros if all values are equal."""
    # The standard deviation of equal numbers may be rounding noise: the range is exactly 0.
    if not np.ptp(values) > 0:
        return np.zeros_like(values)
    return np.asarray((values - values.mean()) / values.std())


def with_kept(values: Array, kept: NDArray[np.bool_]) -> Array:
    """Return 0 where ``kept``, and the other values moved linearly to 1/2 to 1."""
    others = values[~kept]
    if others.size == 0:
        return np.zeros_like(values)
    spread = float(np.ptp(others))
    place = (others - others.min()) / spread if spread > 0 else np.ones_like(others)
    found = np.zeros_like(values)
    found[~kept] = 0.5 + place / 2
    return found


def _depth(units: Units, form: str) -> Array:
    """Return the depth score of every unit, which may be a block, a layer in one, or neither."""
    own = [unit_of(members[0].name) for members in units.members]
    return depth_scores(own, form, blocks=units.blocks)
