"""The base class of cutoffs: rules that say where the tail of a spectrum starts.

Eigenvalues are positive and in ascending order. A cutoff returns the index of ``xmin`` among them;
the tail is everything at or above xmin. Whatever depends on the cutoff is a member of its class. To
add a cutoff, write one file with one class and add one line to the table in
``spectail.core.cutoffs``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.null import alpha_of_random_windows, null_by_simulation
from spectail.core.windows import MIN_BANDS, Window, disjoint_window

Array: TypeAlias = NDArray[np.float64]


class Cutoff(ABC):
    """The rule that says where the tail starts.

    Subclasses are frozen dataclasses, so cutoffs with equal settings are equal.
    """

    text: ClassVar[str]
    """Its form on the command line: a word (``median``), or a word and a number (``top:F``)."""
    summary: ClassVar[str]
    """What it selects, in a few words, for the help text and the documentation."""
    meaning: ClassVar[str]
    """What its alpha means, in full sentences, for the report."""
    claims_power_law: ClassVar[bool] = False
    """Whether its alpha is meant as the exponent of a power law. If so, the power law is tested
    (``tail_verdict``)."""
    unjudged: ClassVar[str] = "not applicable: this cutoff measures the shape of the bulk"
    """The ``tail_verdict`` if no power law is claimed."""
    smooth: ClassVar[bool] = False
    """Whether alpha changes smoothly with the eigenvalues. If so, the spread of its null scales
    with the window."""
    min_tail: ClassVar[int] = 5
    """Size of the smallest tail that is fitted."""
    any_window: ClassVar[bool] = True
    """Whether the cutoff means the same in smaller windows, which the error bar may need."""

    @property
    def share(self) -> float | None:
        """The share of the eigenvalues that it selects, if that is one number for all spectra."""
        return None

    @abstractmethod
    def start(self, eigenvalues: Array) -> int:
        """Return the index of xmin in the ascending eigenvalues (N if there is no tail)."""

    def null(
        self,
        window: Window,
        n_windows: int,
        weight_var: float,
        seed: int = 0,
        *,
        is_complex: bool = False,
    ) -> tuple[float, float]:
        """Return mean and standard deviation of alpha over random matrices (the null).

        The matrices have independent Gaussian entries of variance ``weight_var`` and are measured
        in ``n_windows`` windows of this shape, treated as disjoint. The mean of a cutoff with a
        ``share`` follows from the Marchenko-Pastur law if a window has an eigenvalue in the tail on
        average; all else comes from seeded draws.
        """
        lawful = self.share is not None and self.share * min(window) >= 1
        mean, sd = null_by_simulation(
            window, n_windows, self, smooth=lawful, seed=seed, is_complex=is_complex
        )
        if not lawful:
            return mean, sd
        return alpha_of_random_windows(window, is_complex=is_complex, fraction=self.share), sd

    def error_window(self, window: Window, rows: int, cols: int) -> Window:
        """Return the window of the error bar, of which at least 3 x 3 fit into the matrix.

        Tails change with the size of the window, so this is the run's own window if 3 x 3 of it
        fit, otherwise the largest that does.
        """
        return disjoint_window(window, rows, cols, MIN_BANDS)

    def __str__(self) -> str:
        return self.text
