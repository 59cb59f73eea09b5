"""Read a layer for its measurement: whole, or a band of rows or columns at a time.

A layer of up to ``MOST_WHOLE`` weights is read whole. A larger one that lies in memory or in a
local file as plain numbers, row by row, is read in bands, several times: once for its windows and
once for each pass over the whole matrix, of which its largest eigenvalue takes 10 to 100. A remote
one is read in bands if a tolerance leaves most of it unread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from spectail.core.bands import Bands, bands_of
from spectail.core.measure import estimator_of
from spectail.core.metrics import moments
from spectail.core.spec import Spec
from spectail.core.tolerance import FIRST
from spectail.models.difference import UNCHANGED, Change, UnchangedError
from spectail.models.formats.ranges import is_remote, reads_rows
from spectail.models.source import Layer
from spectail.results.records import RunInfo

if TYPE_CHECKING:
    from torch import Tensor

MOST_WHOLE = 2**27
"""Weights of the largest layer that is read whole: half a GiB in float32. Reading in bands saves no
time: a pass over half-precision numbers converts them again."""
FEWEST_BANDS = 2 * FIRST
"""Fewest bands of windows that a remote layer needs to be read in bands. About half of its bytes
are saved then; what is lost are the norms of the whole matrix."""


def read_layer(
    layer: Layer, run: RunInfo, device: str, *, shuffled: bool = False
) -> tuple[Tensor | Bands, float]:
    """Return the matrices of a layer in a form that can be passed over as often as needed.

    The second result is the sum of squares of the base's weights if the layer is a ``Change``, and
    0 for all others. ``shuffled`` says that the entries will be shuffled.

    Raises:
        UnchangedError: The layer is a ``Change`` and both models have the same weights here.

    """
    axis = None
    if torch.device(device).type == "cpu":  # a GPU holds what the machine's memory does not
        axis = banded_axis(layer, run.spec, run.window, whole=run.full_spectrum or shuffled)
    if axis is not None:
        return _in_passes(layer, axis, device)
    if isinstance(layer, Change):
        matrices, before = layer.read_change()
        # Not torch's vector_norm: in float32 it is 0.6 % off on 2^26 weights.
        of_base = sum(moments(part)[1] for part in before)
        del before
    else:
        matrices, of_base = layer.read(), 0.0
    matrices = matrices.detach().to(device)
    # Kernel slices lie scattered in memory and are read several times.
    return matrices.contiguous() if layer.n_matrices > 1 else matrices, of_base


def few_bands(layer: Layer, run: RunInfo, device: str) -> Bands | None:
    """Return a remote layer of which only the bands of its windows are read.

    None means that it is not remote, or that it is read whole because little would be saved.
    """
    if run.spec.tolerance is None or not is_remote(layer.tensor) or isinstance(layer, Change):
        return None
    axis = _axis_of_windows(layer, run.spec, run.window, fewest=FEWEST_BANDS)
    return None if axis is None else _bands(layer, axis, device)


def banded_axis(layer: Layer, spec: Spec, common: int | None, *, whole: bool) -> int | None:
    """Return along which side a local layer is read in bands, or None if it is read whole.

    ``common`` is the common window of the run. ``whole`` says that the run needs the whole matrix
    at once, for its full spectrum or to shuffle its entries.
    """
    if whole or layer.numel <= MOST_WHOLE or is_remote(layer.tensor):
        return None
    base = layer.base if isinstance(layer, Change) else ()
    if not all(reads_rows(of.tensor) for of in (layer, *base)):
        return None
    # Bands of windows that are nearly as long as the matrix would save nothing.
    return _axis_of_windows(layer, spec, common, fewest=2)


def _axis_of_windows(layer: Layer, spec: Spec, common: int | None, *, fewest: int) -> int | None:
    """Return the axis of the layer's bands if ``fewest`` bands of its windows fit along it."""
    axis = layer.band_axis
    window, _ = estimator_of(spec).place((layer.rows, layer.cols), spec, common)
    if axis is None or (layer.rows, layer.cols)[axis] < fewest * window[axis]:
        return None
    return axis


def _in_passes(layer: Layer, axis: int, device: str) -> tuple[Bands, float]:
    """Return the bands of a layer, and of a change the sum of squares of the base's weights."""
    bands = _bands(layer, axis, device, complete=True)
    if not isinstance(layer, Change):
        return bands, 0.0
    if not any(bool(band.any()) for band in bands_of(bands)):
        raise UnchangedError(UNCHANGED)
    (base,) = layer.base
    return bands, moments(_bands(base, axis, device, complete=True))[1]


def _bands(layer: Layer, axis: int, device: str, *, complete: bool = False) -> Bands:
    """Return the bands of a layer along one side."""

    def read(start: int, stop: int) -> Tensor:
        return layer.read_band(start, stop).detach().to(device)

    return Bands(layer.rows, layer.cols, axis, read, complete=complete)
