"""Measure one layer, by the estimator that the spec asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from spectail.core.farms import Farms, TailFit
from spectail.core.published import Published
from spectail.core.spec import Spec
from spectail.errors import SpecError

if TYPE_CHECKING:
    from torch import Tensor

FARMS = Farms()
PUBLISHED = Published()


def estimator_of(spec: Spec) -> Farms:
    """Choose the estimator: the only place that asks whether the published procedures are wanted."""
    return PUBLISHED if spec.legacy else FARMS


def tail_fit(
    matrix: ArrayLike | Tensor, spec: Spec | None = None, *, window: int | None = None
) -> TailFit:
    """Measure one matrix (2-D), or several that pool into one layer (3-D, the first axis numbers them).

    ``spec`` is the default preset where none is given. ``window`` is the common window of the run
    that the result is to be compared with; without it ``common`` means the matrix's own short side,
    at most MAX_SIDE. Raises SpecError where the window does not fit or the input is no matrix; data
    that cannot be measured (NaN, all zero, too small) gives a status and a reason instead. The
    input is not modified.

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
        raise SpecError(
            f"window={window} stands for the common window of a run, but the spec asks for {spec.window!r}"
        )
    return measure(tensor, spec, window, convolution=several)


def measure(
    matrices: Tensor,
    spec: Spec,
    common: int | None = None,
    *,
    convolution: bool = False,
    error_bar: bool = True,
) -> TailFit:
    """Measure the matrices of one layer, shape (n, rows, cols); ``common`` is the run's window for ``"common"``.

    ``convolution`` says that the matrices are kernel slices, which only the published procedures
    treat differently. Without ``error_bar`` alpha_se is NaN and everything else the same.
    """
    return estimator_of(spec).measure(
        matrices, spec, common, convolution=convolution, error_bar=error_bar
    )


def too_small(shape: tuple[int, int], spec: Spec) -> str:
    """Say why a matrix of this shape is not measured at all; empty where it is."""
    return estimator_of(spec).too_small(shape, spec)


def common_window(shapes: list[tuple[int, int]], spec: Spec) -> int | None:
    """Choose the one window of a run over layers of these shapes: see ``Farms.common_window``."""
    return estimator_of(spec).common_window(shapes, spec)


def _as_tensor(matrix: ArrayLike | Tensor) -> Tensor:
    """The input as a tensor of two or three dimensions that numbers can be read from; SpecError for anything else."""
    if isinstance(matrix, torch.Tensor):
        tensor = matrix.detach()
    else:
        array = np.asarray(matrix)
        if array.dtype.kind not in "fc":
            raise SpecError(
                f"expected a matrix of floating-point numbers, got {array.dtype} of shape {array.shape}"
            )
        wide = np.dtype(np.complex128 if array.dtype.kind == "c" else np.float64)
        native = array.dtype if array.dtype.itemsize <= wide.itemsize else wide
        tensor = torch.from_numpy(np.array(array, dtype=native.newbyteorder("="), order="C"))
    if tensor.ndim not in (2, 3) or not (tensor.is_floating_point() or tensor.is_complex()):
        expected = "expected a matrix of floating-point numbers (2-D, or 3-D to pool)"
        raise SpecError(f"{expected}, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    return tensor.to_dense() if tensor.is_sparse else tensor
