"""Complex weights of Fourier layers: (in, out, *modes) is one (out, in) matrix for each mode.

They are stored as complex numbers or as pairs of real ones in a last dimension of two. Two variants
of neuraloperator are told by the layer's bias, (out, 1, 1) or, in old versions, (layers, out, 1,
1): a *separable* weight (channels, *modes) keeps each channel by itself, and so has one column, as
a depth-wise convolution does; a *joint* weight (layers, in, out, *modes) holds the weights of
several layers, each a part ``[i]``. A weight in Tucker, CP or TT form arrives here put together
(see ``assembly.factorised``).
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
_WEIGHT = re.compile(r"(?:^|\.)(weight(?:\.\d+)?(?:\.tensor)?)$")
_EITHER = "read as the weight of a spherical convolution; a separable one with as many modes as channels looks the same"


@dataclass(frozen=True)
class _Bias:
    """What a spectral layer's bias tells about its weight."""

    order: int
    """Number of dimensions that are transformed."""
    channels: int


def spectral(view: View) -> tuple[Part, ...] | None:
    """One matrix for each mode."""
    shape = view.shape
    real_view = (
        not view.stored.is_complex
        and len(shape) >= 4
        and shape[-1] == 2
        and bool(_SPECTRAL.search(view.name))
    )
    real_view = real_view and view.stored.layout is None
    if not real_view and not view.stored.is_complex:
        return None
    shape = shape[:-1] if real_view else shape
    bias = _bias(view)
    if bias and len(shape) == bias.order + 3:
        return tuple(_part(view, shape[1:], real_view, f"[{i}]", i) for i in range(shape[0]))
    if len(shape) < 2 or (len(shape) == 2 and (bias is None or bias.order != 1)):
        return None
    if bias is None or len(shape) != bias.order + 1:
        return (_part(view, shape, real_view),)
    # A spherical convolution shares its weight along one dimension: it too has one dimension fewer.
    if len(shape) == 2 or shape[0] != shape[1]:
        arrange = partial(channel_modes, real_view=real_view)
        return (
            Part(view.layer, "spectral", math.prod(shape[1:]), shape[0], 1, view.lead, arrange),
        )
    return (replace(_part(view, shape, real_view), note=_EITHER),)


def _part(
    view: View, shape: tuple[int, ...], real_view: bool, suffix: str = "", *index: int
) -> Part:
    """One weight (in, out, *modes)."""
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
    leading = sum(size != 1 for size in shape)
    if leading == 1:
        return _Bias(len(shape) - 1, shape[0]) if shape[0] != 1 else _Bias(len(shape) - 2, shape[1])
    return _Bias(len(shape) - 2, shape[1]) if leading == 2 else None
