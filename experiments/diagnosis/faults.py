"""Faults that are planted in a layer, and harmless changes that no number should take for a fault.

Each works on the matrices of one layer, shape (n, rows, cols), and returns new ones. A
convolution has one matrix per kernel position.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Generator, Tensor

Change: TypeAlias = Callable[[Tensor, Generator], Tensor]
Initialisation: TypeAlias = Callable[[Tensor], float]
"""Standard deviation of a layer's initialisation from its matrices, whose shape gives the fans."""


@dataclass(frozen=True)
class State:
    """A changed layer: the family of the change, its strength in words, and the change."""

    family: str
    strength: str
    change: Change

    @property
    def name(self) -> str:
        """Family and strength."""
        return f"{self.family} {self.strength}".strip()


def faults(initial: Initialisation) -> tuple[State, ...]:
    """All faults; ``initial`` is the model's rule for the spread of its initial weights."""
    return (
        State("initialisation", "", partial(redrawn, initial=initial)),
        State("initialisation", "at the trained variance", partial(redrawn, initial=trained_sd)),
        *(State("noise", f"{size:g}", partial(noised, size=size)) for size in (0.1, 0.3, 1.0)),
        *(
            State("rank", f"{100 * share:g} %", partial(low_rank, share=share))
            for share in (0.5, 0.25, 0.1)
        ),
        *(
            State(f"outlier {what}", f"x {factor}", partial(outlier, dim=dim, factor=factor))
            for what, dim in (("column", 2), ("row", 1))
            for factor in (10, 30)
        ),
        *(State("quantised", f"{bits} bits", partial(quantised, bits=bits)) for bits in (3, 2)),
    )


CONTROLS = (
    State("unchanged", "", lambda matrices, _: matrices),
    State("permuted", "", lambda matrices, generator: permuted(matrices, generator)),
    State("scaled", "x 2", lambda matrices, _: 2 * matrices),
)
"""Changes that are no faults. Permuting neurons, and scaling where a norm or the next layer
undoes it, leave what a network computes as it is.
"""
CUTS = {"cut to a half": 2, "cut to a quarter": 4}
"""Healthy layers of another shape: the part of the short side's neurons
that is left is 1 in so many."""


def generator_for(*names: str) -> Generator:
    """A random generator that depends on the names only.

    So every layer and change has its own.
    """
    return torch.Generator().manual_seed(zlib.crc32(" | ".join(names).encode()))


def trained_sd(matrices: Tensor) -> float:
    """The spread of the weights as they are: only the arrangement of the weights is lost."""
    return float(matrices.std())


def normal_002(_: Tensor) -> float:
    """N(0, 0.02^2), the initialisation of BERT, ViT and of Llama models in transformers."""
    return 0.02


def smollm2(_: Tensor) -> float:
    """1 / 24, the ``initializer_range`` of SmolLM2-135M."""
    return 1 / 24


def glorot(matrices: Tensor) -> float:
    """Glorot and Bengio 2010: variance 2 / (fan in + fan out), the default of Keras."""
    n, rows, cols = matrices.shape
    return math.sqrt(2 / (n * (rows + cols)))


def kaiming_out(matrices: Tensor) -> float:
    """He et al. 2015: variance 2 / fan out, as EfficientNets are initialised."""
    return math.sqrt(2 / (matrices.shape[0] * matrices.shape[1]))


def redrawn(matrices: Tensor, generator: Generator, initial: Initialisation) -> Tensor:
    """Independent normal weights: a layer that was never trained."""
    return initial(matrices) * torch.randn(matrices.shape, generator=generator)


def noised(matrices: Tensor, generator: Generator, size: float) -> Tensor:
    """Weights plus normal noise whose root mean square is ``size`` times that of the weights."""
    scale = size * float(matrices.square().mean().sqrt())
    return matrices + scale * torch.randn(matrices.shape, generator=generator)


def low_rank(matrices: Tensor, _: Generator, share: float) -> Tensor:
    """The best approximation by a ``share`` of the rank, for each matrix."""
    wide = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.mT
    wide = wide.double()
    # Eigenvectors of the smaller Gram matrix are the singular vectors; eigh sorts upwards.
    vectors = torch.linalg.eigh(wide.mT @ wide).eigenvectors
    kept = vectors[..., -max(1, round(share * wide.shape[2])) :]
    found: Tensor = (wide @ kept @ kept.mT).to(matrices.dtype)
    return found if matrices.shape[1] >= matrices.shape[2] else found.mT


def outlier(matrices: Tensor, generator: Generator, dim: int, factor: float) -> Tensor:
    """One row (dim 1, an output) or column (dim 2, an input) of all matrices times ``factor``."""
    chosen = int(torch.randint(matrices.shape[dim], (1,), generator=generator))
    found = matrices.clone()
    found.select(dim, chosen).mul_(factor)
    return found


def quantised(matrices: Tensor, _: Generator, bits: int, group: int = 64) -> Tensor:
    """Round to the nearest of 2^bits levels between least and greatest of each ``group`` inputs."""
    parts = []
    for part in matrices.split(group, dim=2):
        low, high = part.amin(dim=2, keepdim=True), part.amax(dim=2, keepdim=True)
        # A group of equal weights has no step; any positive one gives it back unchanged.
        step = ((high - low) / (2**bits - 1)).clamp_min(torch.finfo(part.dtype).tiny)
        parts.append(low + step * ((part - low) / step).round())
    return torch.cat(parts, dim=2)


def permuted(matrices: Tensor, generator: Generator) -> Tensor:
    """Rows and columns in random order, the same for all matrices of the layer."""
    rows, cols = (torch.randperm(size, generator=generator) for size in matrices.shape[1:])
    return matrices[:, rows][:, :, cols]


def cut(matrices: Tensor, generator: Generator, part: int) -> Tensor:
    """A random 1 in ``part`` of the lines across the shorter side, in their order."""
    dim = 1 if matrices.shape[1] <= matrices.shape[2] else 2
    kept = torch.randperm(matrices.shape[dim], generator=generator)[: matrices.shape[dim] // part]
    return matrices.index_select(dim, kept.sort().values)
