"""FARMS, whole: a layer's matrices -> windows of one shape -> pooled eigenvalues -> one tail fit with its error bar.

Hu, Goel, Killiakov and Yang, "Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias", ICML 2025. The
defaults depart from the published code where that is wrong; ``Spec.legacy`` brings it back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spectail.core.jackknife import alpha_standard_error
from spectail.core.legacy import CONVOLUTION_FACTOR, fit_divisions, legacy_divisions, legacy_windows
from spectail.core.metrics import moments
from spectail.core.sequential import enough_windows
from spectail.core.spec import Spec
from spectail.core.spectra import numerical_zeros, window_eigenvalues
from spectail.core.tails import PowerLaw, fit_from
from spectail.core.windows import MIN_BANDS, Window, disjoint_bands, largest_fit, window_shape
from spectail.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = NDArray[np.float64]

MIN_SIDE = 16
"""Smaller layers (routers, RGB stems, depth-wise slices) have too few eigenvalues per window to say anything."""
COMPARABLE_SIDE = 64
"""Smaller layers are measured in a window of their own and never set the common one."""
MAX_SIDE = 1024
"""Largest common window."""
NO_WINDOW = Window(0, 0)
NO_EXPONENT = "all eigenvalues of the tail are equal: no exponent describes them"


@dataclass(frozen=True, kw_only=True)
class TailFit:
    """What one layer shows. NaN where there is no number; then ``status`` and ``reason`` say why."""

    alpha: float = math.nan
    alpha_se: float = math.nan
    """Standard error by the jackknife of ``core.jackknife``."""
    xmin: float = math.nan
    ks: float = math.nan
    n_tail: int = 0
    status: str = "ok"
    """ok, skipped (too small to measure) or failed (NaN, Inf, all zero, no tail)."""
    reason: str = ""
    eigenvalues: Array = field(default_factory=lambda: np.empty(0), repr=False)
    """All pooled eigenvalues above numerical zero, ascending."""
    n_zero: int = 0
    n_windows: int = 0
    window: Window = NO_WINDOW
    alpha_null: float = math.nan
    alpha_null_sd: float = math.nan
    weight_var: float = math.nan
    sum_of_squares: float = math.nan
    """Sum of the squared weights: the sum of all eigenvalues of the whole matrices."""


def tail_fit(matrix: ArrayLike | Tensor, spec: Spec | None = None, *, window: int | None = None) -> TailFit:
    """Measure one matrix (2-D), or several that pool into one layer (3-D, the first axis numbers them).

    ``spec`` is the default preset where none is given. ``window`` is the common window of the run that the result is to
    be compared with; without it ``common`` means the matrix's own short side, at most MAX_SIDE.
    Raises SpecError where the window does not fit or the input is no matrix; data that cannot be measured (NaN, all
    zero, too small) gives a status and a reason instead. The input is not modified.

    >>> import numpy as np
    >>> gaussian = np.random.default_rng(0).standard_normal((512, 512))
    >>> fit = tail_fit(gaussian, Spec(window=128))
    >>> fit.n_windows, fit.status, round(fit.alpha_null, 2), abs(fit.alpha - fit.alpha_null) < 0.03
    (16, 'ok', 2.12, True)
    """
    tensor = _as_tensor(matrix)
    several = tensor.ndim == 3
    if tensor.ndim == 2:
        tensor = tensor[None]
    spec = spec or Spec()
    if window is not None and spec.window != "common":
        raise SpecError(f"window={window} stands for the common window of a run, but the spec asks for {spec.window!r}")
    return measure(tensor, spec, window, convolution=several)


def measure(
    matrices: Tensor, spec: Spec, common: int | None = None, *, convolution: bool = False, error_bar: bool = True
) -> TailFit:
    """Measure the matrices of one layer, shape (n, rows, cols); ``common`` is the run's window for ``"common"``.

    ``convolution`` says that the matrices are kernel slices, which only ``spec.legacy`` treats differently. Without
    ``error_bar`` alpha_se is NaN and everything else the same.
    """
    shape = (matrices.shape[1], matrices.shape[2])
    if reason := too_small(shape, spec):
        return TailFit(status="skipped", reason=reason)
    if not matrices.shape[0]:
        return TailFit(status="skipped", reason="too small: a layer of no matrices")
    if matrices.is_meta:
        return TailFit(status="failed", reason="the weights have no values (meta device): load the checkpoint first")
    weight_var, squares = moments(matrices)
    if reason := _unusable(matrices, squares):
        return TailFit(status="failed", reason=reason)
    divided = spec.legacy and convolution and spec.window != "whole"
    if divided:
        matrices, window, positions = legacy_divisions(matrices, spec)
    else:
        window, positions = _placed(shape, spec, common)
    taken, found = _solved(matrices, window, positions, spec, all_of_them=divided)
    if spec.legacy and convolution:
        found *= CONVOLUTION_FACTOR
    zero = found <= 0 if spec.legacy else numerical_zeros(found, window)
    fit = TailFit(
        eigenvalues=np.sort(found[~zero]),
        n_zero=int(zero.sum()),
        n_windows=found.shape[0] * found.shape[1],
        window=window,
        weight_var=weight_var,
        sum_of_squares=squares,
    )
    if divided:
        tail = fit_divisions(found, spec.cutoff)
        if not math.isfinite(tail.alpha):
            return replace(fit, status="failed", reason=NO_EXPONENT)
        return replace(fit, **tail._asdict())
    known = dict(zip(taken, found, strict=True))
    fit = _with_error(_with_tail(fit, spec), spec, matrices, known if error_bar else None)
    if spec.tolerance is None or fit.status != "ok":
        return fit
    return replace(fit, reason="; ".join(filter(None, [_how_many(len(taken), len(positions), spec), fit.reason])))


def too_small(shape: tuple[int, int], spec: Spec) -> str:
    """Why a matrix of this shape is not measured at all; empty where it is."""
    if min(shape) >= 1 and (spec.legacy or largest_fit(*shape, spec.aspect_ratio) >= MIN_SIDE):
        return ""
    return f"too small: matrices of {shape[0]} x {shape[1]}, a window needs a short side of at least {MIN_SIDE}"


def full_spectrum_fit(matrices: Tensor, spec: Spec) -> TailFit:
    """Eigenvalues and alpha of the whole matrices, one window each, with the cutoff of ``spec``; no error bar."""
    window = Window(matrices.shape[1], matrices.shape[2])
    found = window_eigenvalues(matrices, window, [(0, 0)], exact_zeros=spec.legacy)
    zero = found <= 0 if spec.legacy else numerical_zeros(found, window)
    pooled = np.sort(found[~zero])
    tail = _fit(pooled, spec)
    return TailFit(
        **tail._asdict(), eigenvalues=pooled, n_zero=int(zero.sum()), window=window, n_windows=found.shape[1]
    )


def common_window(shapes: list[tuple[int, int]], spec: Spec) -> int | None:
    """The one window of a run over layers of these shapes; None where each layer has its own (fit, whole).

    ``common``: the smallest short side that fits, among layers where at least COMPARABLE_SIDE fits, at most MAX_SIDE.
    None also where no layer is that large. A number that fits no layer at all is a SpecError.
    """
    if spec.window in ("fit", "whole"):
        return None
    fits = [largest_fit(*shape, spec.aspect_ratio) for shape in shapes]
    if spec.window == "common":
        return min((min(fit, MAX_SIDE) for fit in fits if fit >= COMPARABLE_SIDE), default=None)
    side = int(spec.window)
    if fits and not spec.legacy and max(fits) < side:
        raise SpecError(f"a window of {side} is larger than every layer; the largest that fits any is {max(fits)}")
    return side


def _as_tensor(matrix: ArrayLike | Tensor) -> Tensor:
    """The input as a tensor of two or three dimensions that numbers can be read from; SpecError for anything else."""
    if isinstance(matrix, torch.Tensor):
        tensor = matrix.detach()
    else:
        array = np.asarray(matrix)
        if array.dtype.kind not in "fc":
            raise SpecError(f"expected a matrix of floating-point numbers, got {array.dtype} of shape {array.shape}")
        wide = np.dtype(np.complex128 if array.dtype.kind == "c" else np.float64)
        native = array.dtype if array.dtype.itemsize <= wide.itemsize else wide
        tensor = torch.from_numpy(np.array(array, dtype=native.newbyteorder("="), order="C"))
    if tensor.ndim not in (2, 3) or not (tensor.is_floating_point() or tensor.is_complex()):
        expected = "expected a matrix of floating-point numbers (2-D, or 3-D to pool)"
        raise SpecError(f"{expected}, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    return tensor.to_dense() if tensor.is_sparse else tensor


def _placed(shape: tuple[int, int], spec: Spec, common: int | None) -> tuple[Window, list[tuple[int, int]]]:
    """The window of a layer and the corners where it is cut."""
    if spec.window == "whole":
        return Window(*shape), [(0, 0)]
    fit = largest_fit(*shape, spec.aspect_ratio)
    if spec.window == "fit":
        side = fit
    elif spec.window == "common":
        side = min(fit, MAX_SIDE) if common is None or fit < COMPARABLE_SIDE else common
    else:
        side = int(spec.window)
    if spec.legacy:
        return legacy_windows(shape, spec, side)
    window = window_shape(*shape, side, spec.aspect_ratio)
    return window, spec.placement.positions(*shape, window, spec.seed)


def _solved(
    matrices: Tensor, window: Window, positions: list[tuple[int, int]], spec: Spec, *, all_of_them: bool
) -> tuple[list[tuple[int, int]], Array]:
    """The windows that are looked at, and their eigenvalues."""
    if spec.tolerance is not None and not all_of_them:
        return enough_windows(matrices, window, positions, spec)
    return positions, window_eigenvalues(matrices, window, positions, exact_zeros=spec.legacy)


def _how_many(taken: int, placed: int, spec: Spec) -> str:
    if taken == placed:
        return f"all {placed} windows: fewer would not do for a tolerance of {spec.tolerance:g}"
    return f"{taken} of {placed} windows: the others would move alpha by less than {100 * (spec.tolerance or 0):g} %"


def _unusable(matrices: Tensor, squares: float) -> str:
    """What is wrong with weights whose squares add up to ``squares``; empty where nothing is."""
    if not math.isfinite(squares):
        bad = sum(int((~torch.isfinite(matrix)).sum()) for matrix in matrices)
        too_large = "the squares of the weights do not fit into float64: scale them down"
        return f"{bad} of {matrices.numel()} weights are NaN or infinite" if bad else too_large
    if squares > np.finfo(np.float64).tiny:
        return ""
    return "the squares of the weights vanish in float64: scale them up" if matrices.any() else "all weights are zero"


def _with_tail(fit: TailFit, spec: Spec) -> TailFit:
    """Add the tail and its null to what was found."""
    tail = _fit(fit.eigenvalues, spec)
    least = min(2, spec.cutoff.min_tail) if spec.legacy else spec.cutoff.min_tail
    if tail.n_tail < least:
        reason = f"too small: {tail.n_tail} eigenvalues in the tail, a fit needs at least {spec.cutoff.min_tail}"
        return replace(fit, status="skipped", reason=reason)
    if not math.isfinite(tail.alpha):
        return replace(fit, status="failed", reason=NO_EXPONENT)
    mean, sd = spec.cutoff.null(fit.window, fit.n_windows, fit.weight_var, spec.seed)
    return replace(fit, **tail._asdict(), alpha_null=mean, alpha_null_sd=sd)


def _with_error(fit: TailFit, spec: Spec, matrices: Tensor, known: dict[tuple[int, int], Array] | None) -> TailFit:
    """Add the error bar and remarks; ``known`` are the eigenvalues at each position, None for no error bar."""
    if fit.status != "ok":
        return fit
    error, remark = (math.nan, "") if known is None else _error_bar(fit.window, matrices, known, spec)
    remarks = [remark] if remark else []
    total = fit.eigenvalues.size + fit.n_zero
    if fit.n_zero * 2 > total:
        remarks.append(f"only {total - fit.n_zero} of {total} eigenvalues are above numerical zero")
    return replace(fit, alpha_se=error, reason="; ".join(remarks))


def _fit(eigenvalues: Array, spec: Spec) -> PowerLaw:
    """The tail that the cutoff gives; an empty one where nothing reaches it."""
    start = spec.cutoff.start(eigenvalues) if eigenvalues.size else 0
    if start >= eigenvalues.size:
        return PowerLaw(math.nan, math.nan, math.nan, 0)
    return fit_from(eigenvalues, start)


def _error_bar(window: Window, matrices: Tensor, known: dict[tuple[int, int], Array], spec: Spec) -> tuple[float, str]:
    """Jackknife error of alpha on disjoint windows; or why there is none."""
    rows, cols = matrices.shape[1:]
    smaller = spec.cutoff.error_window(window, rows, cols)
    if min(smaller) < 2:
        return math.nan, f"no error bar: fewer than {MIN_BANDS} x {MIN_BANDS} disjoint windows fit"
    if smaller != window and not spec.cutoff.any_window:
        return math.nan, "no error bar: a fixed xmin means something else in the smaller windows that it needs"
    tops, lefts = disjoint_bands(rows, smaller.rows), disjoint_bands(cols, smaller.cols)
    corners = [(top, left) for top in tops for left in lefts]
    if smaller == window and all(corner in known for corner in corners):
        found = np.stack([known[corner] for corner in corners])
    else:
        found = window_eigenvalues(matrices, smaller, corners)
    found = found.reshape(len(tops), len(lefts), *found.shape[1:])
    error = alpha_standard_error(found, numerical_zeros(found, smaller), spec.cutoff)
    return error, "" if math.isfinite(error) else "no error bar: some windows have no tail of their own"
