"""Weights that are stored as codes, which select short vectors from codebooks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectail.models.assembly.pieces import Pieces
from spectail.models.lazy_tensor import LazyTensor


def aqlm(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight of AQLM (arXiv 2401.06118, eq. 2).

    Every group of weights is the sum of one vector from each codebook, times a scale. The shapes
    are: codes (out / a, in / b, codebooks), codebooks (codebooks, codes, a, b), scales (out / a, in
    / b or 1, 1, 1).
    """
    codes, books, scales = pieces.anchor, pieces["{}.codebooks"], pieces["{}.scales"]
    if (
        len(codes.shape) != 3
        or len(books.shape) != 4
        or codes.shape[2] != books.shape[0]
        or len(scales.shape) != 4
    ):
        return None
    if (
        codes.is_floating
        or scales.shape[0] != codes.shape[0]
        or scales.shape[1] not in {1, codes.shape[1]}
    ):
        return None
    # A scale for each entry of a vector is not part of the format.
    if math.prod(scales.shape[2:]) != 1:
        return None
    shape = (codes.shape[0] * books.shape[2], codes.shape[1] * books.shape[3])
    return pieces.made(shape, _aqlm_values, codes, books, scales)


def _aqlm_values(codes: Tensor, books: Tensor, scales: Tensor) -> Tensor:
    """Add the vectors that the codes select from each codebook, and multiply by the scales."""
    # Codes are unsigned numbers in signed types; the remainder undoes the sign.
    index = codes.to(torch.int64) % books.shape[1]
    vectors = sum(
        books[number].to(torch.float32)[index[..., number]] for number in range(books.shape[0])
    )
    scaled = torch.as_tensor(vectors) * scales.to(torch.float32)
    # (out / a, in / b, a, b) to (out, in).
    return scaled.transpose(1, 2).flatten(2).flatten(0, 1)
