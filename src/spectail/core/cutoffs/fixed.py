"""A cutoff at a fixed xmin, in the units of the weights squared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np

from spectail.core.cutoffs.base import Array, Cutoff
from spectail.core.cutoffs.top import SET_BY_HAND
from spectail.core.null import alpha_of_random_windows
from spectail.core.windows import Window
from spectail.errors import SpecError


@dataclass(frozen=True)
class Fixed(Cutoff):
    """All eigenvalues at or above ``xmin``, given in the units of the weights squared."""

    text = "fixed:X"
    summary = "the eigenvalues from X up"
    meaning = SET_BY_HAND
    # Eigenvalues grow with the window, so the same xmin keeps another share of a smaller one.
    any_window = False

    xmin: float

    def __post_init__(self) -> None:
        if not (isinstance(self.xmin, Real) and 0 < self.xmin < math.inf):
            raise SpecError(f"fixed:X needs a positive finite xmin, not {self.xmin!r}")

    def start(self, eigenvalues: Array) -> int:
        """Return the index of the first eigenvalue at or above xmin (N if there is none)."""
        return int(np.searchsorted(eigenvalues, self.xmin, side="left"))

    def null(
        self,
        window: Window,
        n_windows: int,
        weight_var: float,
        seed: int = 0,
        *,
        is_complex: bool = False,
    ) -> tuple[float, float]:
        """Return the mean from the Marchenko-Pastur law at this layer's variance, and no spread.

        The mean is NaN if xmin lies above the law's upper edge.
        """
        # The law is stated for variance 1 and eigenvalues divided by the longer side.
        scaled = self.xmin / (max(window) * weight_var) if weight_var > 0 else math.inf
        return alpha_of_random_windows(window, is_complex=is_complex, xmin=scaled), math.nan

    def __str__(self) -> str:
        return f"fixed:{self.xmin!r}"
