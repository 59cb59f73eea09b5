"""Gaussian noise of a known relative size in one weight, taken back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from spectail.models.live.restored import restored
from spectail.models.live.weights import Weight


@contextmanager
def noisy(weight: Weight, relative: float, seed: int) -> Iterator[None]:
    """Add Gaussian noise N with ||N||^2 = relative ||W||^2 to a weight while the context lasts.

    The noise is drawn on the CPU, so that it is the same on all devices. It is added in float32, or
    wider, and then rounded to the stored type. Other layers in the same parameter keep their
    weights.
    """
    tensor = weight.tensor if weight.expert is None else weight.tensor[weight.expert]
    with restored([tensor]):
        values = weight.read()
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn(wide.shape, generator=draw, dtype=wide.dtype).to(wide.device)
        noise *= (relative * _energy(wide) / _energy(noise)).sqrt()
        with torch.no_grad():
            weight.write((wide + noise).to(values.dtype))
        yield


def _energy(values: Tensor) -> Tensor:
    """Return the sum of squares."""
    return values.abs().square().sum()
