"""Weights that torch computes from other parameters.

These are weight norm, spectral norm, pruning masks and other parametrisations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from spectail.models.assembly.pieces import Pieces
from spectail.models.lazy_tensor import Index, LazyTensor, as_float, piece_of


def weight_norm(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight under weight norm, g v / |v| (arXiv 1602.07868, eq. 2).

    The norm is taken over the dimensions along which g has size one.
    """
    direction = pieces.anchor
    (norms,) = pieces.found.values()
    if not _norms_fit(norms.shape, direction.shape):
        return None
    # The names *_v and *_g can also belong to two matrices: projections of values and of gates.
    if norms.numel >= direction.numel and not pieces.name.endswith("weight"):
        return None
    read = partial(_read_weight_norm, norms, direction)
    return pieces.described(direction.shape, read, dtype=direction.dtype)


def _norms_fit(g: tuple[int, ...], v: tuple[int, ...]) -> bool:
    """Whether g can hold the norms of v: one for all, or one for each slice of a dimension."""
    if len(v) < 2 or g in {(), (1,)}:
        return len(v) >= 2
    return (
        len(g) == len(v)
        and sum(a != 1 for a in g) <= 1
        and all(a in {1, b} for a, b in zip(g, v, strict=True))
    )


def _read_weight_norm(g: LazyTensor, v: LazyTensor, index: Index) -> Tensor:
    """Compute g v / |v|."""
    norms, direction = as_float(g.read(())), as_float(v.read(()))
    # g as large as v has no dimension to take a norm over: the norm of an entry is its magnitude.
    over = [d for d in range(direction.ndim) if norms.ndim != direction.ndim or norms.shape[d] == 1]
    scale = (
        torch.linalg.vector_norm(direction, dim=over or None, keepdim=True)
        if over
        else direction.abs()
    )
    return piece_of(direction * (norms / scale), index)


def pruned(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight under a mask of ``torch.nn.utils.prune``."""
    weight, (mask,) = pieces.anchor, pieces.found.values()
    if weight.shape != mask.shape:
        return None
    return pieces.described(weight.shape, partial(_read_masked, weight, mask), dtype=weight.dtype)


def _read_masked(weight: LazyTensor, mask: LazyTensor, index: Index) -> Tensor:
    """Multiply a weight by its pruning mask."""
    return piece_of(weight.read(()) * mask.read(()), index)


def spectral_norm(pieces: Pieces) -> LazyTensor | None:
    """Describe a weight under spectral norm: divided by its largest singular value.

    The singular value comes from the stored singular vectors (arXiv 1802.05957, eq. 8).
    """
    weight = pieces.anchor
    vectors = list(pieces.found.values())
    read = partial(
        _read_spectral_norm, weight, vectors[0], vectors[1] if len(vectors) > 1 else None
    )
    return pieces.described(weight.shape, read, dtype=weight.dtype)


def _read_spectral_norm(
    weight: LazyTensor, u: LazyTensor, v: LazyTensor | None, index: Index
) -> Tensor:
    """Divide by the singular value that the stored vectors give, as the layer does in eval mode."""
    tensor, left = as_float(weight.read(())), as_float(u.read(()))
    right = as_float(v.read(())) if v else None
    # u belongs to the output dimension, which is the second one in transposed convolutions. Of
    # several dimensions of its size, the right one gives the largest value, since the power
    # iteration has turned u to W v.
    fits = [d for d in range(tensor.ndim) if tensor.shape[d] == left.numel()] or [0]
    sigmas = [_singular_value(tensor.movedim(d, 0).flatten(1), left, right) for d in fits]
    return piece_of(tensor / max(sigmas, key=abs), index)


def _singular_value(matrix: Tensor, left: Tensor, right: Tensor | None) -> Tensor:
    """Return u W v; without v, |u W| is the same number once the power iteration has converged."""
    if right is not None:
        return left @ (matrix @ right)
    norm: Tensor = torch.linalg.vector_norm(left @ matrix)
    return norm


UNKNOWN = (
    "parametrised in a way that the file does not tell: open the live module, "
    "or call torch.nn.utils.parametrize.remove_parametrizations before saving"
)
"""The problem of a weight that only the module's own code can compute."""
_OF_PARAMETRISATION = re.compile(r"(?P<path>(?:.*\.)?)parametrizations\.(?P<own>\w+)\.\d+\.")
"""Names of tensors that belong to one of a weight's parametrisations, which torch numbers."""


def unknown_parametrisation(pieces: Pieces) -> LazyTensor:
    """Describe any other parametrisation, which only the module's own code can compute."""
    return pieces.failed(UNKNOWN)


def refuse_further(
    made: dict[str, LazyTensor], known: Mapping[str, LazyTensor], used: set[str]
) -> None:
    """Fail weights that one more norm, mask or parametrisation changes than their recipe has used.

    Args:
        made: Weights by the name of their anchor. Those that fail are replaced here.
        known: All tensors, by name.
        used: Names of the tensors that recipes have used.

    """
    matches = (_OF_PARAMETRISATION.match(name) for name in known.keys() - used)
    again = {match["path"] + match["own"] for match in matches if match}
    shapes = {stored.name: stored.shape for stored in (*known.values(), *made.values())}
    for name, weight in made.items():
        if weight.name in again:
            made[name] = replace(weight, problem=UNKNOWN, memory=None)
        elif weight.name != name and _is_piece(weight.name, shapes):
            made[name] = replace(weight, problem=_NESTED, memory=None)


_NESTED = (
    "a norm or a mask of torch over another one: call torch.nn.utils.prune.remove, "
    "remove_weight_norm or remove_spectral_norm before saving"
)
"""The problem of a weight that is itself a piece of a normed or masked one."""


def _is_piece(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a weight is what old torch takes another norm of, or puts another mask on."""
    stem, _, end = name.rpartition("_")
    if end == "orig":
        return f"{stem}_u" in shapes or shapes.get(f"{stem}_mask") == shapes[name]
    norms = shapes.get(f"{stem}_g")
    return (
        end == "v"
        and norms is not None
        and math.prod(norms) < math.prod(shapes[name])
        and _norms_fit(norms, shapes[name])
    )
