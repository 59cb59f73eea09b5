"""Tensor subclasses that dequantise, gather or compute their values when they are used.

What such a tensor holds in memory is not the weight that the model computes with. It is therefore
read through its own method: ``full_tensor`` (DTensor), ``dequantize`` (torchao, optimum-quanto),
``get_original_weight`` (NF4Tensor), or a function of bitsandbytes. A tensor of an unknown class is
not read.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from spectail.basics.texts import first_line
from spectail.errors import SourceError

_METHODS = ("full_tensor", "get_original_weight", "dequantize")
_DEEPEST = 4
"""How many subclasses within subclasses are followed; a DTensor of a quantised tensor has two
levels."""


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor computes with the values in its storage, as ``torch.Tensor`` does."""
    if (
        tensor.is_quantized
        or getattr(tensor, "quant_state", None) is not None
        or _row_scales(tensor) is not None
    ):
        return False
    kind = type(tensor)
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return False
    # A subclass of Parameter holds its data as it is used, or as packed
    # integers, which the recipes recognise by their type.
    return issubclass(kind, nn.Parameter) or not _overrides_functions(kind)


def _overrides_functions(kind: type[Tensor]) -> bool:
    """Whether a class gives torch's functions a meaning of its own."""
    # Class methods are bound anew for each class. Compare the functions underneath.
    own, base = kind.__torch_function__, Tensor.__torch_function__
    return getattr(own, "__func__", own) not in {
        getattr(base, "__func__", base),
        torch._C._disabled_torch_function_impl,
    }


def why_unreadable(tensor: Tensor) -> str | None:
    """Return why a subclass cannot be converted to a plain tensor; None if it can."""
    if tensor.is_quantized or _reader(tensor) is not None:
        return None
    return (
        f"a tensor of class {_class_name(tensor)}, which has no method dequantize: "
        "dequantise it first"
    )


def plain_view(tensor: Tensor) -> Tensor:
    """View a tensor that computes with its storage as a ``torch.Tensor`` without gradient."""
    values = tensor.detach()
    return values if type(values) is Tensor else values.as_subclass(Tensor)


def to_plain(tensor: Tensor) -> Tensor:
    """Convert a subclass to a plain tensor by its own method.

    Raises:
        SourceError: The method fails, or its result cannot be read either.

    """
    value = tensor
    for _ in range(_DEEPEST):
        if is_plain(value):
            return plain_view(value)
        reader = _reader(value)
        if reader is None:
            break
        try:
            with torch.no_grad():
                value = reader()
        except Exception as error:  # noqa: BLE001 - another library's code may raise anything
            reason = first_line(error)
            raise SourceError(
                f"a tensor of class {_class_name(value)} cannot be dequantised: {reason}"
            ) from None
    raise SourceError(
        f"a tensor of class {_class_name(value)} cannot be dequantised: it gives no plain tensor"
    )


def _reader(tensor: Tensor) -> Callable[[], Tensor] | None:
    """Return the method that gives the values a tensor computes with; None if there is none."""
    if tensor.is_quantized:
        return tensor.dequantize
    if getattr(tensor, "quant_state", None) is not None:
        return _bitsandbytes_4bit(tensor)
    if _row_scales(tensor) is not None:
        return lambda: _scaled_rows(tensor)
    for name in _METHODS:
        # A static look-up: an ordinary one would run the properties of a foreign class. ``Tensor``
        # itself has ``dequantize``, which counts only if the class replaces it.
        found = inspect.getattr_static(type(tensor), name, None)
        if found is not None and found is not inspect.getattr_static(Tensor, name, None):
            if isinstance(found, staticmethod | classmethod):
                continue
            method: Callable[[], Tensor] = getattr(tensor, name)
            return method
    return None


def _bitsandbytes_4bit(tensor: Any) -> Callable[[], Tensor] | None:
    """Return a function that dequantises a 4-bit tensor of bitsandbytes; None without it."""
    # Nothing is imported here: whoever made the tensor has already imported the library.
    functions = sys.modules.get("bitsandbytes.functional")
    if functions is None:
        return None
    return lambda: functions.dequantize_4bit(tensor.data.as_subclass(Tensor), tensor.quant_state)


def _row_scales(tensor: Any) -> Tensor | None:
    """Return the largest magnitude of each row, as bitsandbytes' 8-bit parameters keep it."""
    scales = getattr(tensor, "SCB", None) if tensor.dtype == torch.int8 else None
    return scales if isinstance(scales, Tensor) else None


def _scaled_rows(tensor: Tensor) -> Tensor:
    """Compute a weight of bitsandbytes in 8 bits: integer x its row's largest value / 127."""
    scales = _row_scales(tensor)
    values = tensor.detach().as_subclass(Tensor).to(torch.float32)
    return values if scales is None else values * scales.reshape(-1, 1).to(torch.float32) / 127


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of the values, which a packed 4-bit tensor keeps in its state."""
    return tuple(getattr(getattr(tensor, "quant_state", None), "shape", None) or tensor.shape)


def identity_of(tensor: Tensor) -> Hashable:
    """Return a key that is equal for tensors of the same storage, also inside of subclasses."""
    inner = _inner_tensors(tensor)
    if inner:
        return (_class_name(tensor), *(identity_of(piece) for piece in inner))
    # A subclass without inner tensors may have no storage; only the object identifies it.
    if type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return ("object", id(tensor))
    try:
        address = tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return ("object", id(tensor))
    stride = () if tensor.layout != torch.strided else tensor.stride()
    return (address, tensor.storage_offset(), tuple(tensor.shape), stride)


def _inner_tensors(tensor: Any) -> list[Tensor]:
    """List the tensors that a wrapper subclass is made of, by torch's flattening protocol."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return []
    try:
        names, _ = flatten()
        pieces = [getattr(tensor, name) for name in names]
    except Exception:  # noqa: BLE001 - another library's code may raise anything
        # Without its pieces, the object itself identifies the tensor.
        return []
    return [piece for piece in pieces if isinstance(piece, Tensor)]


def _class_name(tensor: Tensor) -> str:
    """Return the name of a tensor's class with the library that it comes from."""
    kind = type(tensor)
    return (
        f"{kind.__module__.partition('.')[0]} {kind.__qualname__}"
        if kind.__module__
        else kind.__qualname__
    )
