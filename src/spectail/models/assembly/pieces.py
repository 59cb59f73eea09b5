"""Stored tensors that make up one weight: finding them by name patterns, and computing the weight.

A name pattern contains ``{}`` in place of the module's path, including the dot behind it; a module
at the root has neither. It may contain one ``*`` in place of the parameter's own name. For example,
``{}.*_scale`` matches ``mlp.up_proj.weight_scale``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from spectail.models.assembly.quantisation import Quantisation
from spectail.models.lazy_tensor import Index, LazyTensor, parameters_of, piece_of


@cache
def _compiled(pattern: str) -> tuple[str, re.Pattern[str]]:
    """Turn a name pattern into its literal end and a regular expression."""
    body = re.escape(pattern.removeprefix("{}.")).replace(r"\*", r"(?P<own>\w+?)")
    # Most names fail the comparison with the literal end, which is much faster than the expression.
    return re.split(r"\*|\{\}\.", pattern)[-1], re.compile(rf"(?:(?P<module>.*)\.)?{body}")


def match_name(pattern: str, name: str) -> tuple[str, str] | None:
    """Match a whole name; return the module's path and what stands for ``*``, or None.

    For a pattern without ``*``, the second result is the last component of the name.

    >>> match_name("{}.*_scale", "mlp.up_proj.weight_scale"), match_name("{}.qweight", "qweight")
    (('mlp.up_proj', 'weight'), ('', 'qweight'))
    """
    end, expression = _compiled(pattern)
    match = expression.fullmatch(name) if name.endswith(end) else None
    own = "" if match is None else match.groupdict().get("own") or name.rpartition(".")[2]
    return None if match is None else (match["module"] or "", own)


def may_match(pattern: str, ends: Collection[str]) -> bool:
    """Return whether a pattern may match a name whose last component is one of those given.

    >>> may_match("{}.*_scale", {"weight", "weight_scale"}), may_match("{}.qweight", {"weight"})
    (True, False)
    """
    last = _compiled(pattern)[0].rpartition(".")[2]
    return any(end.endswith(last) for end in ends)


def fill_in(pattern: str, module: str, own: str) -> str:
    """Return the name that a pattern stands for, given the module's path and the own name.

    >>> fill_in("{}.*_scale", "mlp.up_proj", "weight"), fill_in("{}.scales", "", "")
    ('mlp.up_proj.weight_scale', 'scales')
    """
    return pattern.replace("{}.", f"{module}." if module else "").replace("*", own)


@dataclass(frozen=True)
class Pieces:
    """The tensors that a recipe found for one weight, by the recipe's name patterns."""

    name: str
    """Name of the weight that they make up."""
    module: str
    """Path of the module that the weight belongs to."""
    anchor: LazyTensor
    """The tensor whose place the weight takes."""
    found: Mapping[str, LazyTensor]
    """All other tensors, by name pattern."""
    quantisation: Quantisation = field(default_factory=Quantisation)
    """The checkpoint's ``quantization_config``; empty if there is none."""

    def __getitem__(self, pattern: str) -> LazyTensor:
        """Return a tensor that the recipe requires."""
        return self.found[pattern]

    def get(self, pattern: str) -> LazyTensor | None:
        """Return an optional tensor."""
        return self.found.get(pattern)

    def only(self, patterns: tuple[str, ...]) -> LazyTensor | None:
        """Return the tensor under one of several patterns; None unless exactly one is there."""
        there = [self.found[pattern] for pattern in patterns if pattern in self.found]
        return there[0] if len(there) == 1 else None

    @property
    def all(self) -> tuple[LazyTensor, ...]:
        """Every tensor, the anchor first."""
        return (self.anchor, *self.found.values())

    @property
    def blocked(self) -> str | None:
        """The reason why the values of some piece cannot be read; None if all can."""
        return next((piece.problem for piece in self.all if piece.problem), None)

    def made(
        self,
        shape: tuple[int, ...],
        function: Callable[..., Tensor],
        /,
        *inputs: LazyTensor | None,
        **options: Any,
    ) -> LazyTensor:
        """Describe the weight that ``function`` computes from the values of ``inputs``.

        The weight is computed only when it is read. Of a stack of matrices (three and more
        dimensions), one matrix is computed if only one is asked for.

        Args:
            shape: Shape of the weight.
            function: Computes the weight from the values of the inputs.
            *inputs: The pieces that the function takes; None for optional ones that are missing.
            **options: Further arguments of the function.

        """
        read = partial(_compute, partial(function, **options), inputs, shape)
        return self.described(shape, read)

    def described(
        self,
        shape: tuple[int, ...],
        read: Callable[[Index], Tensor],
        *,
        dtype: str = "float32",
        note: str = "",
    ) -> LazyTensor:
        """Describe a weight that ``read`` computes from the pieces."""
        identities = tuple(piece.identity for piece in self.all)
        # Without the identity of every piece, a cached result could belong to other values.
        identity: Hashable = identities if all(i is not None for i in identities) else None
        return LazyTensor(
            self.name,
            shape,
            dtype,
            read,
            self.anchor.layout,
            self.blocked,
            note=note,
            identity=identity,
            parameters=parameters_of(self.all),
        )

    def failed(self, problem: str, shape: tuple[int, ...] | None = None) -> LazyTensor:
        """Describe a weight that cannot be computed, with its true shape if that is known."""
        stored = self.anchor
        return LazyTensor(
            self.name,
            shape if shape is not None and len(shape) >= 2 else stored.shape,
            stored.dtype,
            stored.read,
            stored.layout,
            problem,
            parameters=parameters_of(self.all),
        )


def bytes_of(stored: LazyTensor) -> bytes:
    """Return the bytes of a text that is stored as numbers, in whatever shape."""
    return bytes(stored.read(()).reshape(-1).to(torch.uint8).tolist())


def shape_text(shape: tuple[int, ...]) -> str:
    """Write a shape as ``4x8``; that of a scalar as ``a scalar``."""
    return "x".join(map(str, shape)) or "a scalar"


def _compute(
    function: Callable[..., Tensor],
    inputs: tuple[LazyTensor | None, ...],
    shape: tuple[int, ...],
    index: Index,
) -> Tensor:
    """Read the inputs and compute the weight, or one matrix of a stack."""
    first = index[0] if index and len(shape) > 2 else None
    if not isinstance(first, int):
        return piece_of(function(*(piece.read(()) if piece else None for piece in inputs)), index)
    # A range turns a negative index into a positive one, and rejects one out of bounds.
    lead = range(shape[0])[first]
    values = [
        piece.read((lead,) if _is_stacked(piece, shape) else ()) if piece else None
        for piece in inputs
    ]
    return piece_of(function(*values), index[1:])


def _is_stacked(piece: LazyTensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has one entry for each matrix of the stack."""
    return len(piece.shape) > 0 and piece.shape[0] == shape[0]
