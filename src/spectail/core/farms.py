"""The default estimator, FARMS: windows of one shape, pooled eigenvalues, one tail fit.

Hu, Goel, Killiakov and Yang, "Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias",
ICML 2025. A layer's matrices are cut into windows, the eigenvalues of all windows are pooled, and
one power-law tail is fitted to them, with an error bar. The defaults depart from the published code
where that code is wrong; the module ``published`` reproduces it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from spectail.core.bands import Bands, bands_of, eigenvalues_of
from spectail.core.cutoffs import Cutoff
from spectail.core.erg import erg_count
from spectail.core.error_bar import jackknife_error
from spectail.core.metrics import largest_eigenvalue, moments
from spectail.core.spec import Spec
from spectail.core.spectra import numerical_zeros
from spectail.core.tail_fit import TailFit
from spectail.core.tails import PowerLaw, fit_from, remark_on_ties, why_no_exponent
from spectail.core.tolerance import enough_windows
from spectail.core.windows import Window, largest_fit, window_shape
from spectail.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]
Positions: TypeAlias = list[tuple[int, int]]
"""Top left corners (row, column) of windows."""

MIN_SIDE = 16
"""Shortest side of a window. Smaller layers (routers, RGB stems, depth-wise slices) have too few
eigenvalues per window to fit a tail."""
COMPARABLE_SIDE = 64
"""Layers that cannot hold a window of this side are measured in a window of their own. They do not
influence the common window."""
MAX_SIDE = 1024
"""Longest short side of the common window."""
ROWS_ONLY = (
    "norms and variance not measured: they need every weight, and with a tolerance only the rows "
    "of the windows are fetched"
)


class Farms:
    """The default estimator: it turns the matrices of one layer into a tail fit.

    The published procedures are a subclass that overrides the steps in which they differ. This
    class does not know about them.
    """

    exact_zeros = False
    """Whether to use an SVD, which keeps exact zeros exact and takes twice the time."""
    convolution_factor = 1.0
    """What the eigenvalues of convolutions are multiplied by."""
    floor_words = "numerical zero"
    """What eigenvalues must exceed to take part in the fit."""
    counts_tied = False
    """Whether a weight that several modules share is measured once for each of them."""

    def too_small(self, shape: tuple[int, int], spec: Spec, n_matrices: int = 1) -> str:
        """Return why matrices of this shape cannot be measured, or an empty string if they can."""
        largest = largest_fit(*shape, spec.aspect_ratio) if min(shape) >= 1 else 0
        if largest >= MIN_SIDE:
            return ""
        why = f", and the largest of aspect ratio {spec.aspect_ratio:g} has {largest}"
        return too_small_text(shape) + (why if min(shape) >= MIN_SIDE else "")

    def common_window(self, shapes: list[tuple[int, int]], spec: Spec) -> int | None:
        """Return the common window of a run over layers of these shapes.

        For ``common`` it is the smallest short side that fits, among the layers that can hold a
        window of COMPARABLE_SIDE, and at most MAX_SIDE. The result is None when each layer has a
        window of its own: for ``fit`` and ``whole``, and when no layer is large enough for a common
        window. A number that fits no layer raises SpecError.
        """
        if spec.window in ("fit", "whole"):
            return None
        fits = [largest_fit(*shape, spec.aspect_ratio) for shape in shapes]
        if spec.window == "common":
            return min((min(fit, MAX_SIDE) for fit in fits if fit >= COMPARABLE_SIDE), default=None)
        side = int(spec.window)
        self.check_side(side, fits)
        return side

    def check_side(self, side: int, fits: list[int]) -> None:
        """Raise SpecError if a window of this side is larger than every layer."""
        if fits and max(fits) < side:
            raise SpecError(
                f"a window of {side} is larger than every layer; "
                f"the largest that fits any is {max(fits)}"
            )

    def measure(
        self,
        matrices: Tensor | Bands,
        spec: Spec,
        common: int | None,
        *,
        convolution: bool,
        error_bar: bool,
    ) -> TailFit:
        """Measure the matrices of one layer; see the function ``core.measure.measure``."""
        if refused := self._without_values(matrices, spec):
            return refused
        weight_var, squares = moments(matrices)
        if reason := _unusable(matrices, squares):
            return TailFit(status="failed", reason=reason)
        fit = self.fit(
            matrices,
            spec,
            common,
            convolution=convolution,
            error_bar=error_bar,
            variance=weight_var,
        )
        return replace(fit, weight_var=weight_var, sum_of_squares=squares)

    def measure_bands(
        self, bands: Bands, spec: Spec, common: int | None, *, error_bar: bool
    ) -> TailFit:
        """Measure a matrix of which only the bands of its windows are read: no norms, no variance.

        Its shape must allow a window.
        """
        fit = self.fit(
            bands, spec, common, convolution=False, error_bar=error_bar, variance=math.nan
        )
        if not fit.eigenvalues.size:
            return replace(fit, status="failed", reason="all weights that were read are zero")
        return replace(fit, reason="; ".join(filter(None, [fit.reason, ROWS_ONLY])))

    def _without_values(self, matrices: Tensor | Bands, spec: Spec) -> TailFit | None:
        """Return the result for matrices that cannot be measured whatever their values are."""
        if not matrices.shape[0]:
            return TailFit(status="skipped", reason="too small: a layer of no matrices")
        count, rows, cols = matrices.shape
        if reason := self.too_small((rows, cols), spec, count):
            return TailFit(status="skipped", reason=reason)
        if isinstance(matrices, torch.Tensor) and matrices.is_meta:
            reason = "the weights have no values (meta device): load the checkpoint first"
            return TailFit(status="failed", reason=reason)
        return None

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
        """Cut windows, compute their eigenvalues and fit the tail; the matrices must be usable."""
        window, positions = self.place((matrices.shape[1], matrices.shape[2]), spec, common)
        taken, found = self.solve(matrices, window, positions, spec)
        if convolution:
            found = self.convolution_factor * found
        fit = self.with_tail(
            self.pooled(found, window), spec, variance, is_complex=matrices.dtype.is_complex
        )
        # The error bar can reuse the eigenvalues of windows that do not overlap.
        known = dict(zip(taken, found, strict=True))
        # If a tolerance took all windows, the error bar is that of all windows too.
        usual = spec if len(taken) < len(positions) else replace(spec, tolerance=None)
        fit = self.with_error(fit, usual, matrices, known if error_bar else None)
        if spec.tolerance is None or fit.status != "ok":
            return fit
        counted = _how_many(len(taken), len(positions), spec)
        return replace(fit, reason="; ".join(filter(None, [counted, fit.reason])))

    def place(
        self, shape: tuple[int, int], spec: Spec, common: int | None
    ) -> tuple[Window, Positions]:
        """Return the window of a layer and the top left corners where it is cut."""
        if spec.window == "whole":
            return Window(*shape), [(0, 0)]
        window = window_shape(*shape, self.side(shape, spec, common), spec.aspect_ratio)
        return window, spec.placement.positions(*shape, window, spec.seed)

    def cut(
        self, matrices: Tensor, spec: Spec, common: int | None, *, convolution: bool
    ) -> tuple[Tensor, Window, Positions]:
        """Return the matrices as they are cut, the window, and where it is cut."""
        return matrices, *self.place((matrices.shape[1], matrices.shape[2]), spec, common)

    def side(self, shape: tuple[int, int], spec: Spec, common: int | None) -> int:
        """Return the short side of a layer's windows."""
        fit = largest_fit(*shape, spec.aspect_ratio)
        if spec.window == "fit":
            return fit
        if spec.window == "common":
            # Without a common window, or below it, the layer has a window of its own.
            return min(fit, MAX_SIDE) if common is None or fit < COMPARABLE_SIDE else common
        return int(spec.window)

    def solve(
        self, matrices: Tensor | Bands, window: Window, positions: Positions, spec: Spec
    ) -> tuple[Positions, Array]:
        """Return the positions solved and their eigenvalues, (positions, matrices, min(window)).

        Without a tolerance all positions are solved; with one, only as many as it needs.
        """

        def eigenvalues(corners: Positions) -> Array:
            return eigenvalues_of(matrices, window, corners, exact_zeros=self.exact_zeros)

        if spec.tolerance is None:
            return positions, eigenvalues(positions)
        return enough_windows(
            positions, window, eigenvalues, lambda found: self.zeros(found, window), spec
        )

    def zeros(self, found: Array, window: Window) -> NDArray[np.bool_]:
        """Mark the eigenvalues that are numerical zeros and take no part in the fit."""
        return numerical_zeros(found, window)

    def pooled(self, found: Array, window: Window) -> TailFit:
        """Pool the eigenvalues of all windows into a TailFit that has no tail yet."""
        # found has the shape (positions, matrices, eigenvalues); zeros are judged window by window.
        zero = self.zeros(found, window)
        n_windows, n_zero = found.shape[0] * found.shape[1], int(zero.sum())
        return TailFit(
            eigenvalues=np.sort(found[~zero]),
            n_zero=n_zero,
            left_out=np.sort(found[zero]),
            rank=found.size - n_zero,
            rank_loss=n_zero,
            n_windows=n_windows,
            window=window,
        )

    def min_tail(self, cutoff: Cutoff) -> int:
        """Return the size of the smallest tail that is fitted."""
        return cutoff.min_tail

    def tail(self, eigenvalues: Array, cutoff: Cutoff) -> PowerLaw:
        """Fit the tail that the cutoff selects."""
        return tail_of(eigenvalues, cutoff)

    def without_tail(self, fit: TailFit, tail: PowerLaw, cutoff: Cutoff) -> TailFit | None:
        """Return the fit without a tail if this one is too short or has no exponent."""
        if tail.n_tail < self.min_tail(cutoff):
            # The message states the cutoff's own minimum, which the published code ignores.
            reason = (
                f"too small: {tail.n_tail} eigenvalues in the tail, "
                f"a fit needs at least {cutoff.min_tail}"
            )
            return replace(fit, status="skipped", reason=reason)
        if reason := why_no_exponent(fit.eigenvalues, tail):
            return replace(fit, status="failed", reason=reason)
        return None

    def with_tail(self, fit: TailFit, spec: Spec, variance: float, *, is_complex: bool) -> TailFit:
        """Fit the tail of the pooled eigenvalues and add the null, a random matrix's alpha."""
        tail = self.tail(fit.eigenvalues, spec.cutoff)
        if refused := self.without_tail(fit, tail, spec.cutoff):
            return refused
        mean, sd = spec.cutoff.null(
            fit.window, fit.n_windows, variance, spec.seed, is_complex=is_complex
        )
        return replace(fit, **tail._asdict(), alpha_null=mean, alpha_null_sd=sd)

    def with_error(
        self,
        fit: TailFit,
        spec: Spec,
        matrices: Tensor | Bands,
        known: dict[tuple[int, int], Array] | None,
    ) -> TailFit:
        """Add the error bar and remarks to a fit.

        ``known`` maps each position to its eigenvalues, which the error bar reuses. None means that
        no error bar is wanted.
        """
        if fit.status != "ok":
            return fit
        error, remark = (
            (math.nan, "") if known is None else jackknife_error(fit.window, matrices, known, spec)
        )
        rounding = max(fit.window) * np.finfo(np.float64).eps * fit.eigenvalues[-1]
        tail = PowerLaw(fit.alpha, fit.xmin, fit.ks, fit.n_tail)
        ties = remark_on_ties(fit.eigenvalues, tail, rounding)
        remarks = [text for text in (remark, ties) if text]
        # With most eigenvalues zero, the "upper half" of the rest is a small part of the spectrum.
        total = fit.eigenvalues.size + fit.n_zero
        if fit.n_zero * 2 > total:
            remarks.append(
                f"only {total - fit.n_zero} of {total} eigenvalues are above {self.floor_words}"
            )
        return replace(fit, alpha_se=error, reason="; ".join(remarks))

    def whole(self, matrices: Tensor | Bands, spec: Spec, *, convolution: bool = False) -> TailFit:
        """Fit the tail of the whole matrices, without windows and without an error bar.

        If no exponent describes it, ``alpha`` is NaN and ``reason`` says why.
        """
        window = Window(matrices.shape[1], matrices.shape[2])
        _, found = self.solve(matrices, window, [(0, 0)], replace(spec, tolerance=None))
        fit = self.pooled((self.convolution_factor if convolution else 1.0) * found, window)
        tail = self.tail(fit.eigenvalues, spec.cutoff)
        return self.without_tail(fit, tail, spec.cutoff) or replace(fit, **tail._asdict())

    def spectrum(self, fit: TailFit) -> Array:
        """Return the eigenvalues of a whole matrix that its norms and entropy are computed from."""
        return fit.eigenvalues

    def erg_count(self, fit: TailFit) -> int:
        """Return the most eigenvalues, from the largest on, whose product is at least 1."""
        return erg_count(self.spectrum(fit), fit.eigenvalues.size + fit.n_zero)

    def norms(
        self,
        fit: TailFit,
        matrices: Tensor | Bands,
        *,
        convolution: bool = False,
        rough: bool = False,
    ) -> tuple[float, float]:
        """Return the largest eigenvalue of the whole matrices and the sum of all of them.

        ``rough`` asks for the largest one in a few passes over the matrices.
        """
        return largest_eigenvalue(matrices, rough=rough), fit.sum_of_squares

    def is_comparable(self, fit: TailFit, common: int | None) -> bool:
        """Return whether the layer was measured in the run's window, so that alphas compare."""
        # A layer that is too small for the common window has a smaller one of its own.
        return common is None or min(fit.window) == common


def too_small_text(shape: tuple[int, int]) -> str:
    """Return the message for matrices of this shape, which are too small to measure."""
    return (
        f"too small: matrices of {shape[0]} x {shape[1]}, "
        f"a window needs a short side of at least {MIN_SIDE}"
    )


def _how_many(taken: int, placed: int, spec: Spec) -> str:
    """Describe how many of the placed windows were measured to reach the tolerance."""
    if placed == 1:
        return "its only window was measured"
    if taken == placed:
        return f"all {placed} windows were needed to reach a tolerance of {spec.tolerance:g}"
    share = f"{100 * (spec.tolerance or 0):g} %"
    return f"{taken} of {placed} windows: the others would move alpha by less than {share}"


def _unusable(matrices: Tensor | Bands, squares: float) -> str:
    """Return what is wrong with the weights, or an empty string; ``squares`` sums their squares.

    A finite sum of squares shows that all weights are finite, so they are not searched one by one.
    """
    # A margin: rounding must not carry the largest eigenvalue, or a sum, beyond the largest number.
    if not squares <= np.finfo(np.float64).max / 2:
        # torch cannot test 8-bit floats.
        narrow = matrices.dtype.itemsize == 1
        bad = sum(
            int((~torch.isfinite(m.float() if narrow else m)).sum())
            for band in bands_of(matrices)
            for m in band
        )
        too_large = "the squares of the weights do not fit into float64: scale them down"
        count = math.prod(matrices.shape)
        return f"{bad} of {count} weights are NaN or infinite" if bad else too_large
    if squares > np.finfo(np.float64).tiny:
        return ""
    return (
        "the squares of the weights vanish in float64: scale them up"
        if any(bool(band.any()) for band in bands_of(matrices))
        else "all weights are zero"
    )


def tail_of(eigenvalues: Array, cutoff: Cutoff) -> PowerLaw:
    """Fit the tail that the cutoff selects; the fit is empty if no eigenvalue belongs to it."""
    # A fixed xmin can lie above every eigenvalue.
    start = cutoff.start(eigenvalues) if eigenvalues.size else 0
    if start >= eigenvalues.size:
        return PowerLaw(math.nan, math.nan, math.nan, 0)
    return fit_from(eigenvalues, start)
