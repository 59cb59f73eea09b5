"""A small solver: reaction and diffusion of one substance on a periodic square.

It solves u_t = D (u_xx + u_yy) + r u (1 - u), Fisher's equation. Fields are (..., side, side) in
float64, values at evenly spaced points of the unit square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Fields = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Equation:
    """Diffusivity D, growth rate r, and the time after which the solution is asked for."""

    diffusivity: float
    rate: float
    time: float = 1.0


def solve(start: Fields, equation: Equation, *, steps: int = 50) -> Fields:
    """The field after ``equation.time``, by Strang's splitting.

    Half a step of growth, a step of diffusion in Fourier space, half a step of
    growth; each part is solved exactly, so that the error is of second order in the
    step and zero where one of the two is absent.
    """
    step = equation.time / steps
    kernel = np.exp(-equation.diffusivity * step * squared_wave_numbers(start.shape[-1]))
    u = start
    for _ in range(steps):
        u = grown(u, equation.rate * step / 2)
        u = np.fft.irfft2(kernel * np.fft.rfft2(u), s=u.shape[-2:])
        u = grown(u, equation.rate * step / 2)
    return u


def grown(u: Fields, amount: float) -> Fields:
    """Logistic growth, u' = r u (1 - u), over a time of ``amount`` / r."""
    factor = math.exp(amount)
    return u * factor / (1 + u * (factor - 1))


def squared_wave_numbers(side: int) -> Fields:
    """|k|^2 of the terms of ``rfft2``, shape (side, side // 2 + 1), in radians per unit length."""
    down, right = np.fft.fftfreq(side, 1 / side), np.fft.rfftfreq(side, 1 / side)
    return (2 * math.pi) ** 2 * (down[:, None] ** 2 + right[None, :] ** 2)


def random_fields(n: int, side: int, seed: int, *, smooth: float = 3.0) -> Fields:
    """Fields between 0 and 1, shape (n, side, side): a logistic function of Gaussian random fields.

    Their power falls as (|k|^2 + 9)^-smooth with |k| in cycles, to unit
    variance; the square is mostly empty.
    """
    noise = np.fft.rfft2(np.random.default_rng(seed).standard_normal((n, side, side)))
    power = (squared_wave_numbers(side) / (2 * math.pi) ** 2 + 9) ** -smooth
    power[0, 0] = 0
    smoothed = np.fft.irfft2(np.sqrt(power) * noise, s=(side, side))
    smoothed /= smoothed.std()
    return 1 / (1 + np.exp(3 - 3 * smoothed))
