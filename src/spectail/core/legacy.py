"""What the published FARMS code does differently, to reproduce its numbers: nothing else uses this.

Windows are ``side`` rows by ``side * ratio`` columns of the matrix as stored; the side is clamped to the matrix as in
the LLM part. Grids use a floor stride and leave an edge out. A convolution is cut into ``rows // cols`` divisions, each
division is fitted by itself over all kernel slices, and the alphas are averaged; weights count sqrt(1/2).
Where the published code silently loses the aspect ratio, this is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from spectail.core.cutoffs import Cutoff
from spectail.core.spec import Spec
from spectail.core.tails import PowerLaw, fit_from
from spectail.core.windows import Grid, Window
from spectail.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]

CONVOLUTION_FACTOR = 0.5
"""Eigenvalues of convolutions are halved (``conv_norm``); alpha does not see it."""


def legacy_windows(shape: tuple[int, int], spec: Spec, side: int) -> tuple[Window, list[tuple[int, int]]]:
    """Window and positions of a linear layer, as the published code places them."""
    rows = min(side, *shape)
    window = Window(rows, int(rows * spec.aspect_ratio))
    if window.cols > shape[1]:
        raise SpecError(
            f"legacy windows of {window.rows} x {window.cols} do not fit into a matrix of {shape[0]} x {shape[1]}, "
            f"where the published code would silently use another aspect ratio"
        )
    if not isinstance(spec.placement, Grid):
        return window, spec.placement.positions(*shape, window, spec.seed)
    per_side = spec.placement.per_side
    tops, lefts = (
        range(0, extent - size + 1, max(1, (extent - size) // max(1, per_side - 1)))[:per_side]
        for extent, size in zip(shape, window, strict=True)
    )
    return window, [(top, left) for top in tops for left in lefts]


def legacy_divisions(matrices: Tensor, spec: Spec) -> tuple[Tensor, Window, list[tuple[int, int]]]:
    """Kernel slices turned upright, the window of one division, and where the divisions start."""
    upright = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.mT
    rows, cols = upright.shape[1:]
    ratio = spec.aspect_ratio
    window = Window(int(cols / ratio), cols) if ratio >= 1 else Window(cols, int(cols * ratio))
    return upright, window, [(i * window.rows, 0) for i in range(rows // cols)]


def fit_divisions(divisions: Array, cutoff: Cutoff) -> PowerLaw:
    """Alpha, xmin and KS distance averaged over divisions, shape (divisions, slices, eigenvalues); tails added up."""
    pools = [np.sort(division, axis=None) for division in divisions]
    fits = [fit_from(pool, cutoff.start(pool)) for pool in pools]
    alpha, xmin, ks = (float(np.mean([getattr(fit, key) for fit in fits])) for key in ("alpha", "xmin", "ks"))
    return PowerLaw(alpha, xmin, ks, sum(fit.n_tail for fit in fits))
