"""Pairs of fields: Darcy flow, and reaction and diffusion.

Darcy flow is as neuraloperator 0.3.0 ships it; the other comes from our solver.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from experiments.pde.solver import Equation, random_fields, solve

Pairs: TypeAlias = tuple[Tensor, Tensor]
"""Inputs and solutions, each (n, 1, side, side) in float32."""

WHEEL = "neuraloperator-0.3.0-py3-none-any.whl"
INSIDE = "neuralop/datasets/data/"
N_VALIDATION = 200
"""Of Darcy's 1000 training pairs, the last ones."""


@dataclass(frozen=True)
class Problem:
    """Pairs by use; the training pairs are those that a run draws its own from."""

    train: Pairs
    validation: Pairs
    test: Pairs


@dataclass(frozen=True)
class Scale:
    """Means and standard deviations of inputs and solutions over some training pairs."""

    inputs: tuple[float, float]
    solutions: tuple[float, float]

    @classmethod
    def of(cls, pairs: Pairs) -> Scale:
        """Over all points of all pairs."""
        first, second = ((float(part.mean()), float(part.std())) for part in pairs)
        return cls(first, second)


def darcy(folder: Path) -> Problem:
    """Coefficient to pressure on 16 x 16 points: 800 training, 200 validation and 50 test pairs.

    ``folder`` holds ``darcy_train_16.pt`` and ``darcy_test_16.pt``, or the wheel of
    neuraloperator 0.3.0 with them.

    Raises:
        FileNotFoundError: the folder holds neither.

    """
    train, test = (_pairs(_stored(folder, f"darcy_{part}_16.pt")) for part in ("train", "test"))
    n = len(train[0]) - N_VALIDATION
    return Problem((train[0][:n], train[1][:n]), (train[0][n:], train[1][n:]), test)


def reaction(
    equation: Equation, sizes: tuple[int, int, int], *, side: int, grid: int = 32, seed: int = 0
) -> Problem:
    """Pairs from u(0) to u(T).

    ``sizes`` training, validation and test pairs, solved on ``grid`` points, seen on ``side``.
    """
    start = random_fields(sum(sizes), grid, seed)
    every = grid // side
    fields = [
        field[:, None, ::every, ::every].astype(np.float32)
        for field in (start, solve(start, equation))
    ]
    inputs, solutions = (torch.from_numpy(field).contiguous() for field in fields)
    parts = zip(inputs.split(list(sizes)), solutions.split(list(sizes)), strict=True)
    return Problem(*parts)


def drawn(pairs: Pairs, n: int, seed: int) -> Pairs:
    """``n`` of the pairs, which ones by the seed."""
    chosen = np.random.default_rng(seed).permutation(len(pairs[0]))[:n]
    return pairs[0][chosen], pairs[1][chosen]


def _stored(folder: Path, name: str) -> dict[str, Any]:
    """A file of the folder, or of the wheel in it."""
    if (folder / name).exists():
        content = (folder / name).read_bytes()
    elif (folder / WHEEL).exists():
        with zipfile.ZipFile(folder / WHEEL) as wheel:
            content = wheel.read(INSIDE + name)
    else:
        raise FileNotFoundError(
            f"no {name} and no {WHEEL} in {folder}: "
            f"pip download neuraloperator==0.3.0 --no-deps -d {folder}, or give --data"
        )
    stored: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return stored


def _pairs(stored: dict[str, Any]) -> Pairs:
    return stored["x"].float()[:, None], stored["y"].float()[:, None]
