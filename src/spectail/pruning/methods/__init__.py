"""Pruning methods: which weights of a matrix become zero. One file each, one line in the table."""

from __future__ import annotations

from spectail.errors import PruneError
from spectail.pruning.methods.base import Method, Outcome
from spectail.pruning.methods.magnitude import Magnitude
from spectail.pruning.methods.sparsegpt import SparseGPT
from spectail.pruning.methods.wanda import Wanda

METHODS: list[Method] = [
    Magnitude(),
    Wanda(),
    Wanda(variant=True),
    SparseGPT(),
]
"""All methods with their published settings: the parser, the help text and the page of a run follow
from this list."""


def method_names() -> list[str]:
    """Return the names of all methods, as the command line writes them."""
    return [method.name for method in METHODS]


def as_method(given: Method | str) -> Method:
    """Return a method that is given as itself or by name; PruneError for anything else."""
    if isinstance(given, Method):
        return given
    for method in METHODS:
        if method.name == given:
            return method
    raise PruneError(f"method must be one of {', '.join(method_names())}, not {given!r}")


__all__ = [
    "METHODS",
    "Magnitude",
    "Method",
    "Outcome",
    "SparseGPT",
    "Wanda",
    "as_method",
    "method_names",
]
