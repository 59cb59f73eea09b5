"""Quantised live modules: weights that only the module can compute, and buffers of weights.

Most quantised modules keep their weight in buffers that have the same names as in a file, and the
recipes of ``assembly.recipes`` read both. This module handles what only a live module has: a weight
behind a method, state outside of buffers, and buffers that a kernel has rearranged.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spectail.basics.texts import first_line
from spectail.errors import SourceError
from spectail.models.lazy_tensor import Index, LazyTensor, in_memory, piece_of, unreadable

_REORDERED = re.compile(r"Marlin|Exllama|ExLlama|Machete|BitBLAS|Bitblas", re.IGNORECASE)
"""Class names of modules whose kernels rearrange the packed integers when the model is loaded."""


def module_weights(prefix: str, owner: nn.Module) -> list[LazyTensor]:
    """Describe the weights of a module that only the module can compute; empty for other modules.

    Examples are torch's own quantised modules, which give their weights through methods, and
    modules of packed integers with a method ``dequantize`` (HQQ) or ``dequantize_weight``
    (GPTQModel, which returns (in, out)).
    """
    name = f"{prefix}weight"
    # torch.ao's quantised linear and convolution layers.
    if hasattr(owner, "_packed_params") and callable(getattr(owner, "weight", None)):
        return [_computed(name, owner, "weight")]
    if hasattr(owner, "_all_weight_values") and callable(getattr(owner, "get_weight", None)):
        return _recurrent(prefix, owner)
    if not _holds_integers(owner):
        return []
    if _REORDERED.search(type(owner).__name__):
        problem = (
            f"packed integers in the order of the kernel of {type(owner).__name__}: "
            "analyse the checkpoint instead of the loaded model"
        )
        return [unreadable(name, _stated_shape(owner), "int32", problem)]
    methods = (
        method
        for method in ("dequantize", "dequantize_weight")
        if _takes_nothing(getattr(owner, method, None))
    )
    method = next(methods, None)
    return [_computed(name, owner, method)] if method else []


def _recurrent(prefix: str, owner: Any) -> list[LazyTensor]:
    """Describe the weights of torch's quantised recurrent layers, held in private objects."""
    weights = {key: value for key, value in owner.get_weight().items() if isinstance(value, Tensor)}
    return [
        replace(in_memory(f"{prefix}{key}", value), no_weight="") for key, value in weights.items()
    ]


def _holds_integers(owner: nn.Module) -> bool:
    """Whether a module without sub-modules owns a matrix of integers.

    The test is needed since whole models may have ``dequantize`` too (transformers' do), and may
    hold a buffer of integer positions.
    """
    if any(True for _ in owner.children()):
        return False
    own = [*owner._parameters.values(), *owner._buffers.values()]
    return any(
        t is not None and t.ndim >= 2 and not t.is_floating_point() and not t.is_complex()
        for t in own
    )


def _takes_nothing(method: object) -> bool:
    """Whether a value is a method that can be called without arguments."""
    if not callable(method):
        return False
    try:
        # ``bind`` fails exactly if an argument without a default is missing.
        inspect.signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True


def _computed(name: str, owner: nn.Module, method: str) -> LazyTensor:
    """Describe a weight that a method of the module computes."""
    stated = _stated_shape(owner)
    try:
        shape = tuple(_call(owner, method, ()).shape)
    except SourceError as error:
        return unreadable(name, stated, "uint8", str(error))
    # A size of 1 stands for a size that the module does not state: see ``_stated_shape``.
    if len(shape) == 2 and 1 not in stated and shape != stated:
        problem = (
            f"{type(owner).__name__}.{method}() gives {shape}, expected (out, in) = {stated}: "
            "dequantise it first"
        )
        return unreadable(name, stated, "uint8", problem)
    read = partial(_call, owner, method)
    return LazyTensor(
        name,
        shape,
        "float32",
        read,
        no_weight="",
        parameters=tuple(owner.parameters(recurse=False)),
    )


def _call(owner: nn.Module, method: str, index: Index) -> Tensor:
    """Compute a module's weight and dequantise it if it is one of torch's quantised tensors."""
    try:
        with torch.no_grad():
            value = getattr(owner, method)()
            value = value.dequantize() if value.is_quantized else value
    except Exception as error:  # noqa: BLE001 - another library's code may raise anything
        reason = first_line(error)
        raise SourceError(f"{type(owner).__name__}.{method}() failed: {reason}") from None
    # GPTQModel returns (in, out).
    if method == "dequantize_weight" and tuple(value.shape) == _stated_shape(owner)[::-1]:
        value = value.T
    return piece_of(value.detach(), index)


def _stated_shape(owner: Any) -> tuple[int, int]:
    """Read the sizes (out, in) that a module states; 1 for a size that it does not."""
    rows, cols = (
        next((size for name in names if isinstance(size := getattr(owner, name, None), int)), 1)
        for names in (
            ("out_features", "out_channels", "outfeatures"),
            ("in_features", "in_channels", "infeatures"),
        )
    )
    return rows, cols


def buffers_of(prefix: str, owner: nn.Module, seen: set[int]) -> Iterator[LazyTensor]:
    """Describe a module's own buffers, each once, and row scales of bitsandbytes in 8 bits."""
    for name, buffer in owner._buffers.items():
        if buffer is None or id(buffer) in seen:
            continue
        seen.add(id(buffer))
        yield replace(
            in_memory(f"{prefix}{name}", buffer, layout=_format_of(owner, name)), buffer=True
        )
    # After its first forward pass, an 8-bit layer of bitsandbytes keeps the scales of its rows in
    # its state and no longer on the weight.
    scales = getattr(getattr(owner, "state", None), "SCB", None)
    weight = owner._parameters.get("weight")
    if isinstance(scales, Tensor) and weight is not None and weight.dtype == torch.int8:
        yield replace(in_memory(f"{prefix}SCB", scales), buffer=True)


def _format_of(owner: nn.Module, name: str) -> str | None:
    """Return ``gptq_v2`` if a GPTQ module stores zero points unshifted; else None.

    Version 1 stores zero points minus one. GPTQModel converts every checkpoint to version 2 on
    loading.
    """
    # ``qzero_format`` is a method of GPTQModel's modules;
    # others may use the name for something else.
    version = getattr(owner, "qzero_format", None) if name == "qzeros" else None
    return "gptq_v2" if _takes_nothing(version) and callable(version) and version() == 2 else None
