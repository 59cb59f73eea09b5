"""What a cutoff is: the rule that says where the tail of a spectrum starts, and everything that depends on it.

Eigenvalues are sorted ascending and positive. A cutoff gives the index of ``xmin`` among them; the
tail is everything at or above xmin. A new cutoff is one file with one class, and one line in the
table of ``spectail.core.cutoffs``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.laws import null_by_simulation
from spectail.core.windows import MIN_BANDS, Window, disjoint_window

Array: TypeAlias = NDArray[np.float64]


class Cutoff(ABC):
    """The rule that says where the tail starts. Subclasses are frozen dataclasses: equal settings are equal cutoffs."""

    text: ClassVar[str]
    """How the command line writes it: a word (``median``), or a word and a number (``top:F``)."""
    summary: ClassVar[str]
    """What it does, in a few words, for the help text and the documentation."""
    meaning: ClassVar[str]
    """What its alpha means, in full sentences, for the report."""
    claims_power_law: ClassVar[bool] = False
    """Whether its alpha is meant as the exponent of a power law, which is then tested
    (``tail_verdict``)."""
    unjudged: ClassVar[str] = "not applicable: this cutoff measures the shape of the bulk"
    """The ``tail_verdict`` where no power law is claimed."""
    smooth: ClassVar[bool] = False
    """Whether alpha changes smoothly with the eigenvalues. The spread of its null then scales with
    the window."""
    min_tail: ClassVar[int] = 5
    """Smaller tails are not fitted."""
    any_window: ClassVar[bool] = True
    """Whether the cutoff means the same in smaller windows, which the error bar may need."""

    @abstractmethod
    def start(self, eigenvalues: Array) -> int:
        """Index of xmin in the ascending eigenvalues; their number where there is no tail."""

    def null(
        self, window: Window, n_windows: int, weight_var: float, seed: int = 0
    ) -> tuple[float, float]:
        """Mean and standard deviation of alpha over matrices of independent entries of variance ``weight_var``.

        They hold for ``n_windows`` windows of this shape, taken as if they were disjoint. Unless a
        cutoff knows better, both come from seeded Gaussian draws.
        """
        return null_by_simulation(window, n_windows, self, smooth=self.smooth, seed=seed)

    def error_window(self, window: Window, rows: int, cols: int) -> Window:
        """Choose the window of the error bar, of which at least 3 x 3 fit into the matrix without overlap.

        Tails change with the size of the window, so this is the run's own window where it can be,
        else the largest.
        """
        return disjoint_window(window, rows, cols, MIN_BANDS)

    def __str__(self) -> str:
        return self.text
