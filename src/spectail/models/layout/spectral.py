"""Complex weights of Fourier layers: (in, out, *modes) is one (out, in) matrix for each mode.

They are stored as complex numbers, or as pairs of real numbers in a last dimension of size two. Two
variants of neuraloperator are recognised by the layer's bias, whose shape is (out, 1, 1) or, in old
versions, (layers, out, 1, 1). A *separable* weight (channels, *modes) computes each channel by
itself, and therefore has one column, like a depth-wise convolution. A *joint* weight (layers, in,
out, *modes) holds the weights of several layers, each a part ``[i]``. A weight in Tucker, CP or
tensor-train form has been multiplied out before it comes here (see ``assembly.factorised``).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import partial

from spectail.models.layout.arrange import channel_modes, modes
from spectail.models.layout.part import Part
from spectail.models.layout.view import View

_SPECTRAL = re.compile(
    r"(?:^|\.)(?:weight(?:\.\d+)?\.tensor|weights_?\d*)$|spectral|fourier", re.IGNORECASE
)
"""Names under which a last dimension of size two means pairs of real numbers."""
_WEIGHT = re.compile(r"(?:^|\.)(weight(?:\.\d+)?(?:\.tensor)?)$")
"""The component of a name that the layer's bias has in its own form."""
_EITHER = (
    "read as the weight of a spherical convolution; a separable one with as many modes as "
    "channels looks the same"
)
"""Note for a weight whose shape fits two kinds of layers."""


@dataclass(frozen=True)
class _Bias:
    """What the bias of a spectral layer tells about its weight."""

    order: int
    """Number of dimensions that are Fourier-transformed."""
    channels: int
    """Number of output channels."""


def spectral(view: View) -> tuple[Part, ...] | None:
    """Describe the complex weight of a Fourier layer, with one matrix for each mode."""
    shape = view.shape
    real_view = (
        not view.stored.is_complex
        and len(shape) >= 4
        and shape[-1] == 2
        and bool(_SPECTRAL.search(view.name))
    )
    # A live module says what it is, and Fourier layers have no layout of their own.
    real_view = real_view and view.stored.layout is None
    if not real_view and not view.stored.is_complex:
        return None
    shape = shape[:-1] if real_view else shape
    bias = _bias(view)
    # (layers, in, out, *modes).
    if bias and len(shape) == bias.order + 3:
        return tuple(_part(view, shape[1:], real_view, f"[{i}]", i) for i in range(shape[0]))
    # A complex matrix is an ordinary weight unless a bias shows one transformed dimension.
    if len(shape) < 2 or (len(shape) == 2 and (bias is None or bias.order != 1)):
        return None
    if bias is None or len(shape) != bias.order + 1:
        return (_part(view, shape, real_view),)
    # A spherical convolution shares its weight along one dimension. It has one dimension fewer, as
    # a separable weight has. Only equal first dimensions are read that way, with a note.
    if len(shape) == 2 or shape[0] != shape[1]:
        arrange = partial(channel_modes, real_view=real_view)
        return (
            Part(view.layer, "spectral", math.prod(shape[1:]), shape[0], 1, view.lead, arrange),
        )
    return (replace(_part(view, shape, real_view), note=_EITHER),)


def _part(
    view: View, shape: tuple[int, ...], real_view: bool, suffix: str = "", *index: int
) -> Part:
    """Describe one weight (in, out, *modes)."""
    arrange = partial(modes, real_view=real_view)
    lead = (*view.lead, *index)
    return Part(
        view.layer + suffix, "spectral", math.prod(shape[2:]), shape[1], shape[0], lead, arrange
    )


def _bias(view: View) -> _Bias | None:
    """Find the bias of the layer that the weight belongs to."""
    match = _WEIGHT.search(view.name)
    shape = view.shapes.get(view.name[: match.start(1)] + "bias") if match else None
    if shape is None or len(shape) < 2:
        return None
    # (out, 1, 1) has one size above 1; (layers, out, 1, 1) has two, or one if there is one layer.
    leading = sum(size != 1 for size in shape)
    if leading == 1:
        return _Bias(len(shape) - 1, shape[0]) if shape[0] != 1 else _Bias(len(shape) - 2, shape[1])
    return _Bias(len(shape) - 2, shape[1]) if leading == 2 else None
