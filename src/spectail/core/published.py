"""The published FARMS code as an estimator of its own, to reproduce its numbers.

Windows are ``side`` rows by ``side * ratio`` columns of the matrix as stored, and the side is
limited to the matrix as in the LLM part of the code. Grids use a floor stride and miss an edge. A
convolution is cut into ``rows // cols`` divisions; each division is fitted separately over all
kernel slices, and the alphas are averaged. Its weights are multiplied by sqrt(1/2). Numerical zeros
are kept, and norms are those of the pooled windows. Where the published code silently loses the
aspect ratio, this estimator raises an error.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.bands import Bands
from spectail.core.cutoffs import Cutoff
from spectail.core.farms import Farms, Positions, too_small_text
from spectail.core.spec import Spec
from spectail.core.spectra import window_eigenvalues
from spectail.core.tail_fit import TailFit
from spectail.core.tails import NO_EXPONENT, PowerLaw, fit_from
from spectail.core.windows import Grid, Window
from spectail.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]


class Published(Farms):
    """The published procedures: overrides of the steps in which they differ from the default."""

    exact_zeros = True
    convolution_factor = 0.5
    """``conv_norm`` in the published code, which multiplies the weights by sqrt(1/2)."""

    def too_small(self, shape: tuple[int, int], spec: Spec, n_matrices: int = 1) -> str:
        """Return a reason for an empty matrix only: every other shape is measured."""
        return "" if min(shape) >= 1 else too_small_text(shape)

    def check_side(self, side: int, fits: list[int]) -> None:
        """Accept every side, because it is limited to each matrix."""

    def place(
        self, shape: tuple[int, int], spec: Spec, common: int | None
    ) -> tuple[Window, Positions]:
        """Limit the side to the matrix and count it in rows, as the published code does."""
        if spec.window == "whole":
            return Window(*shape), [(0, 0)]
        return published_windows(shape, spec, self.side(shape, spec, common))

    def cut(
        self, matrices: Tensor, spec: Spec, common: int | None, *, convolution: bool
    ) -> tuple[Tensor, Window, Positions]:
        """Return the matrices as they are cut; a convolution is cut into divisions."""
        if convolution and spec.window != "whole":
            return published_divisions(matrices, spec)
        return super().cut(matrices, spec, common, convolution=convolution)

    def fit(
        self,
        matrices: Tensor | Bands,
        spec: Spec,
        common: int | None,
        *,
        convolution: bool,
        error_bar: bool,
        variance: float,
    ) -> TailFit:
        """Fit a layer; a convolution that is cut averages alpha over its divisions."""
        if convolution and spec.window != "whole" and not isinstance(matrices, Bands):
            return self._fit_divisions(matrices, spec)
        return super().fit(
            matrices,
            spec,
            common,
            convolution=convolution,
            error_bar=error_bar,
            variance=variance,
        )

    def _fit_divisions(self, matrices: Tensor, spec: Spec) -> TailFit:
        """Average alpha over the divisions of a convolution."""
        upright, window, positions = published_divisions(matrices, spec)
        found = self.convolution_factor * window_eigenvalues(
            upright, window, positions, exact_zeros=self.exact_zeros
        )
        fit = self.pooled(found, window)
        tail = average_over_divisions(found, spec.cutoff)
        if not math.isfinite(tail.alpha):
            return replace(fit, status="failed", reason=NO_EXPONENT)
        return replace(fit, **tail._asdict())

    def zeros(self, found: Array, window: Window) -> NDArray[np.bool_]:
        """Mark exact zeros only: the published code keeps eigenvalues that are rounding noise."""
        return found <= 0

    def min_tail(self, cutoff: Cutoff) -> int:
        """Return at most 2: the published code fits any tail of two eigenvalues."""
        return min(2, cutoff.min_tail)

    def norms(
        self,
        fit: TailFit,
        matrices: Tensor | Bands,
        *,
        convolution: bool = False,
        rough: bool = False,
    ) -> tuple[float, float]:
        """Return the largest and the sum of the eigenvalues of the pooled windows."""
        largest = (
            float(fit.eigenvalues[-1]) if fit.eigenvalues.size else super().norms(fit, matrices)[0]
        )
        return largest, float(fit.eigenvalues.sum())

    def is_comparable(self, fit: TailFit, common: int | None) -> bool:
        """Return True: the published code compares all layers, although their windows differ."""
        return True


def published_windows(
    shape: tuple[int, int], spec: Spec, side: int
) -> tuple[Window, list[tuple[int, int]]]:
    """Return the window and the positions of a linear layer, as in the published code."""
    # The published code limits the rows to the shorter side and derives the columns from them.
    rows = min(side, *shape)
    window = Window(rows, int(rows * spec.aspect_ratio))
    if window.cols > shape[1]:
        raise SpecError(
            f"legacy windows of {window.rows} x {window.cols} do not fit into a matrix of "
            f"{shape[0]} x {shape[1]}, "
            f"where the published code would silently use another aspect ratio"
        )
    # Only grids differ; the other placements are not in the published code.
    if not isinstance(spec.placement, Grid):
        return window, spec.placement.positions(*shape, window, spec.seed)
    per_side = spec.placement.per_side
    # The floor stride: the last window may end before the edge, as in the published code.
    tops, lefts = (
        range(0, extent - size + 1, max(1, (extent - size) // max(1, per_side - 1)))[:per_side]
        for extent, size in zip(shape, window, strict=True)
    )
    return window, [(top, left) for top in tops for left in lefts]


def published_divisions(
    matrices: Tensor, spec: Spec
) -> tuple[Tensor, Window, list[tuple[int, int]]]:
    """Return the kernel slices turned upright, the window of a division and where each starts."""
    # A division is a square block of full width (or one of the given ratio), top to bottom; rows
    # that do not fill a division are left out.
    upright = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.mT
    rows, cols = upright.shape[1:]
    ratio = spec.aspect_ratio
    window = Window(int(cols / ratio), cols) if ratio >= 1 else Window(cols, int(cols * ratio))
    return upright, window, [(i * window.rows, 0) for i in range(rows // cols)]


def average_over_divisions(divisions: Array, cutoff: Cutoff) -> PowerLaw:
    """Average alpha, xmin and KS distance over divisions and add up the sizes of their tails.

    ``divisions`` has the shape (divisions, slices, eigenvalues).
    """
    pools = [np.sort(division, axis=None) for division in divisions]
    fits = [fit_from(pool, cutoff.start(pool)) for pool in pools]
    alpha, xmin, ks = (
        float(np.mean([getattr(fit, key) for fit in fits])) for key in ("alpha", "xmin", "ks")
    )
    return PowerLaw(alpha, xmin, ks, sum(fit.n_tail for fit in fits))
