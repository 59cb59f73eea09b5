"""Measure one layer with the estimator that the spec selects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from spectail.core.bands import Bands
from spectail.core.farms import Farms
from spectail.core.published import Published
from spectail.core.spec import Spec
from spectail.core.tail_fit import TailFit
from spectail.core.weightwatcher import WeightWatcher
from spectail.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

FARMS = Farms()
PUBLISHED = Published()
WEIGHTWATCHER = WeightWatcher()


def estimator_of(spec: Spec) -> Farms:
    """Return the estimator of the spec; only this function looks at ``spec.legacy``."""
    if spec.legacy == "weightwatcher":
        return WEIGHTWATCHER
    return PUBLISHED if spec.legacy else FARMS


def tail_fit(
    matrix: ArrayLike | Tensor, spec: Spec | None = None, *, window: int | None = None
) -> TailFit:
    """Measure one matrix (2-D), or several matrices of one layer that pool their eigenvalues (3-D).

    The first axis of a 3-D input counts the matrices. ``spec`` defaults to the default preset.
    ``window`` is the common window of the run that the result is to be compared with; without it
    ``common`` means the matrix's own short side, at most MAX_SIDE. The input is not modified.

    Raises SpecError if the window does not fit or the input is not a matrix of numbers. Data that
    cannot be measured (NaN, all zero, too small) raises nothing: the result has a status and a
    reason instead.

    >>> import numpy as np
    >>> gaussian = np.random.default_rng(0).standard_normal((512, 512))
    >>> fit = tail_fit(gaussian, Spec(window=128))
    >>> fit.n_windows, fit.status, round(fit.alpha_null, 2), abs(fit.alpha - fit.alpha_null) < 0.03
    (16, 'ok', 2.12, True)
    """
    tensor = _as_tensor(matrix)
    # Several matrices are treated as the kernel slices of a convolution.
    several = tensor.ndim == 3
    if tensor.ndim == 2:
        tensor = tensor[None]
    spec = spec or Spec()
    if window is not None and spec.window != "common":
        raise SpecError(
            f"window={window} stands for the common window of a run, "
            f"but the spec asks for {spec.window!r}"
        )
    return measure(tensor, spec, window, convolution=several)


def measure(
    matrices: Tensor | Bands,
    spec: Spec,
    common: int | None = None,
    *,
    convolution: bool = False,
    error_bar: bool = True,
) -> TailFit:
    """Measure the matrices of one layer, shape (n, rows, cols).

    ``common`` is the window of the run, used if the spec's window is ``"common"``. ``convolution``
    says that the matrices are kernel slices, which only the published procedures treat differently.
    Without ``error_bar`` alpha_se is NaN and everything else is the same. Of ``Bands`` that are not
    complete only those are read that windows lie in.
    """
    if isinstance(matrices, Bands) and not matrices.complete:
        return estimator_of(spec).measure_bands(matrices, spec, common, error_bar=error_bar)
    return estimator_of(spec).measure(
        matrices, spec, common, convolution=convolution, error_bar=error_bar
    )


def too_small(shape: tuple[int, int], spec: Spec, n_matrices: int = 1) -> str:
    """Return why matrices of this shape cannot be measured, or an empty string if they can."""
    return estimator_of(spec).too_small(shape, spec, n_matrices)


def common_window(shapes: list[tuple[int, int]], spec: Spec) -> int | None:
    """Return the common window of a run over these shapes; see ``Farms.common_window``."""
    return estimator_of(spec).common_window(shapes, spec)


def _as_tensor(matrix: ArrayLike | Tensor) -> Tensor:
    """Convert the input to a readable 2-D or 3-D tensor; raise SpecError for anything else."""
    if isinstance(matrix, torch.Tensor):
        tensor = matrix.detach()
    else:
        array = np.asarray(matrix)
        if array.dtype.kind not in "fc":
            raise SpecError(
                "expected a matrix of floating-point numbers, "
                f"got {array.dtype} of shape {array.shape}"
            )
        # torch has neither long doubles nor foreign byte orders, so both are converted; the copy
        # also keeps torch from warning about read-only arrays.
        wide = np.dtype(np.complex128 if array.dtype.kind == "c" else np.float64)
        native = array.dtype if array.dtype.itemsize <= wide.itemsize else wide
        tensor = torch.from_numpy(np.array(array, dtype=native.newbyteorder("="), order="C"))
    if tensor.ndim not in (2, 3) or not (tensor.is_floating_point() or tensor.is_complex()):
        expected = "expected a matrix of floating-point numbers (2-D, or 3-D to pool)"
        raise SpecError(f"{expected}, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    return tensor.to_dense() if tensor.is_sparse else tensor
