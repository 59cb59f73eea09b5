"""Weights that tensorly-torch keeps in factors: Tucker, CP and tensor-train form.

The forms are those of Kolda and Bader 2009; neuraloperator's Fourier layers use them. A weight of
shape (n_1, ..., n_d) is stored as

- Tucker: ``core`` (r_1, ..., r_d) and factors (n_i, r_i). The weight is the core times every factor
  along its own dimension.
- CP: ``weights`` (r) and factors (n_i, r). The weight is the weighted sum of r outer products of
  columns.
- TT: factors (r_{i-1}, n_i, r_i) with r_0 = r_d = 1. The weight is the chain of their products.

Complex factors are stored as complex numbers or, by older versions, as pairs of real numbers in a
last dimension of two. Real factors are not multiplied out, because a file does not tell whether
they belong to a convolution or to a linear layer whose sides were split.
"""

from __future__ import annotations

import re
from functools import partial

import torch
from torch import Tensor

from spectail.basics.memory import too_large
from spectail.models.assembly.pieces import Pieces
from spectail.models.lazy_tensor import Index, LazyTensor, as_float, piece_of

MOST_DIMENSIONS = 8
"""Largest number of factors that is looked for."""
CORE, WEIGHTS = "{}.*.core", "{}.*.weights"
_NUMBER = re.compile(r"(\d+)$")
"""The number of a factor."""


def patterns(number: str) -> tuple[str, tuple[str, ...]]:
    """Return the name patterns of the first factor and of all other pieces.

    Args:
        number: What precedes a factor's number: ``factor_``, or nothing in a ParameterList.

    """
    first, *others = (f"{{}}.*.factors.{number}{i}" for i in range(MOST_DIMENSIONS))
    return first, tuple(f"{pattern}?" for pattern in (CORE, WEIGHTS, *others))


def factorised(pieces: Pieces) -> LazyTensor | None:
    """Describe the dense tensor that a layer in factors uses, in place of its first factor."""
    numbered = {
        int(match[1]): p for name, p in pieces.found.items() if (match := _NUMBER.search(name))
    }
    factors = (pieces.anchor, *(numbered[i] for i in sorted(numbered)))
    # A gap in the numbers means that a file lacks a factor.
    if len(factors) < 2 or sorted(numbered) != list(range(1, len(factors))):
        return None
    head = pieces.get(CORE) or pieces.get(WEIGHTS)
    # The form is not stated; the presence of a core or of weights tells it.
    form = "Tucker" if pieces.get(CORE) else "CP" if head else "TT"
    pairs = not pieces.anchor.is_complex and all(piece.shape[-1:] == (2,) for piece in pieces.all)
    shape = _dense_shape(
        form, [_shape(piece, pairs) for piece in factors], _shape(head, pairs) if head else ()
    )
    if shape is None:
        return pieces.failed(f"a weight in {form} form whose factors do not fit each other")
    if not pairs and not pieces.anchor.is_complex:
        return pieces.failed(
            f"a real weight in {form} form, of which only complex ones are put together: "
            "replace the layer by a dense one, its weight by weight.to_tensor()",
            shape,
        )
    if problem := too_large(shape, 8):
        return pieces.failed(problem, shape)
    read = partial(_read, form, head, factors, pairs)
    return pieces.described(
        shape, read, dtype="complex128" if _is_double(pieces.anchor) else "complex64"
    )


def _is_double(piece: LazyTensor) -> bool:
    """Whether a factor has double precision."""
    return piece.dtype in {"complex128", "float64"}


def _shape(piece: LazyTensor, pairs: bool) -> tuple[int, ...]:
    """Return the shape of a factor when its pairs of real numbers are read as complex ones."""
    return piece.shape[:-1] if pairs else piece.shape


def _dense_shape(
    form: str, factors: list[tuple[int, ...]], head: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Return the shape of the whole weight, or None if the factors do not belong together."""
    if form == "TT":
        if any(len(shape) != 3 for shape in factors):
            return None
        ends = [1, *(shape[2] for shape in factors)]
        fits = [shape[0] for shape in factors] == ends[:-1] and ends[-1] == 1
        return tuple(shape[1] for shape in factors) if fits else None
    if any(len(shape) != 2 for shape in factors):
        return None
    ranks = tuple(shape[1] for shape in factors)
    fits = ranks == (head if form == "Tucker" else head * len(factors))
    return tuple(shape[0] for shape in factors) if fits else None


def _read(
    form: str, head: LazyTensor | None, factors: tuple[LazyTensor, ...], pairs: bool, index: Index
) -> Tensor:
    """Multiply the factors; of an index into the first dimension, compute only that entry."""
    values = [_complex(piece.read(()), pairs) for piece in factors]
    first = index[0] if index else None
    if isinstance(first, int):
        # Slicing the first factor slices the product, at a fraction of the memory.
        values[0] = values[0][:, [first]] if form == "TT" else values[0][[first]]
        index = (0, *index[1:])
    if form == "TT":
        return piece_of(_train(values), index)
    if head is None:
        # Never reached: only the TT form has no head.
        raise NotImplementedError
    made = _tucker if form == "Tucker" else _polyadic
    return piece_of(made(_complex(head.read(()), pairs), values), index)


def _complex(tensor: Tensor, pairs: bool) -> Tensor:
    """Convert a stored factor to complex numbers of at least single precision."""
    return torch.view_as_complex(as_float(tensor).contiguous()) if pairs else as_float(tensor)


def _tucker(core: Tensor, factors: list[Tensor]) -> Tensor:
    """Multiply the core by each factor along its own dimension."""
    for factor in factors:
        # Each product removes the first dimension and appends the new one, so after all factors the
        # order is the original one.
        core = torch.tensordot(core, factor, dims=([0], [1]))
    return core


def _polyadic(weights: Tensor, factors: list[Tensor]) -> Tensor:
    """Sum the weighted outer products of the columns of the factors.

    The sum is one product of two matrices, so that no intermediate tensor has the rank beside all
    dimensions of the weight.
    """
    half = len(factors) // 2
    left, right = (
        _columns_of_products(factors[:half]) * weights,
        _columns_of_products(factors[half:]),
    )
    return (left @ right.T).reshape([factor.shape[0] for factor in factors])


def _columns_of_products(factors: list[Tensor]) -> Tensor:
    """Return the Khatri-Rao product of the factors, (n_1 n_2 ..., r)."""
    product = factors[0]
    for factor in factors[1:]:
        # Outer product of the rows, column by column.
        product = (product[:, None] * factor[None]).flatten(0, 1)
    return product


def _train(factors: list[Tensor]) -> Tensor:
    """Multiply the factors of a tensor train, from the first to the last."""
    chain = factors[0].squeeze(0)
    for factor in factors[1:]:
        chain = torch.tensordot(chain, factor, dims=1)
    return chain.squeeze(-1)
