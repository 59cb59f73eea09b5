"""Tensors that are more than their storage: subclasses that dequantise, gather or compute when they are used.

What such a tensor holds in memory is not the weight that the model computes with, so it is read
through its own method: ``full_tensor`` (DTensor), ``dequantize`` (torchao, optimum-quanto),
``get_original_weight`` (NF4Tensor), or the function of bitsandbytes. One of an unknown class is not
read at all.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from spectail.errors import SourceError

_METHODS = ("full_tensor", "get_original_weight", "dequantize")
_DEEPEST = 4
"""Subclasses within subclasses that are followed: a DTensor of a quantised tensor is one."""


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
    # Parameters of their own class keep their data as it is used, or packed, which recipes know by
    # its type.
    return issubclass(kind, nn.Parameter) or not _overrides_functions(kind)


def _overrides_functions(kind: type[Tensor]) -> bool:
    """Whether a class gives torch's functions a meaning of their own."""
    own, base = kind.__torch_function__, Tensor.__torch_function__
    return getattr(own, "__func__", own) not in {
        getattr(base, "__func__", base),
        torch._C._disabled_torch_function_impl,
    }


def why_unreadable(tensor: Tensor) -> str | None:
    """Say why a subclass cannot be turned into a plain tensor, None where it can."""
    if tensor.is_quantized or _reader(tensor) is not None:
        return None
    return (
        f"a tensor of class {_class_name(tensor)}, which has no method dequantize: dequantise it "
        "first"
    )


def plain_view(tensor: Tensor) -> Tensor:
    """View a tensor that computes with its storage as one of torch's own class, without its gradient."""
    values = tensor.detach()
    return values if type(values) is Tensor else values.as_subclass(Tensor)


def to_plain(tensor: Tensor) -> Tensor:
    """Turn a subclass into a plain tensor by its own method.

    Raises:
        SourceError: the method fails, or gives a tensor that cannot be read either.

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
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SourceError(
                f"a tensor of class {_class_name(value)} cannot be dequantised: {reason}"
            ) from None
    raise SourceError(
        f"a tensor of class {_class_name(value)} cannot be dequantised: it gives no plain tensor"
    )


def _reader(tensor: Tensor) -> Callable[[], Tensor] | None:
    """Find the method that gives the values that a tensor computes with."""
    if tensor.is_quantized:
        return tensor.dequantize
    if getattr(tensor, "quant_state", None) is not None:
        return _bitsandbytes_4bit(tensor)
    if _row_scales(tensor) is not None:
        return lambda: _scaled_rows(tensor)
    for name in _METHODS:
        found = inspect.getattr_static(type(tensor), name, None)
        if found is not None and found is not inspect.getattr_static(Tensor, name, None):
            if isinstance(found, staticmethod | classmethod):
                continue
            method: Callable[[], Tensor] = getattr(tensor, name)
            return method
    return None


def _bitsandbytes_4bit(tensor: Any) -> Callable[[], Tensor] | None:
    """Find the function of bitsandbytes, which is loaded where one of its tensors exists."""
    functions = sys.modules.get("bitsandbytes.functional")
    if functions is None:
        return None
    return lambda: functions.dequantize_4bit(tensor.data.as_subclass(Tensor), tensor.quant_state)


def _row_scales(tensor: Any) -> Tensor | None:
    """Find the largest magnitudes of the rows that bitsandbytes keeps on its 8-bit parameters."""
    scales = getattr(tensor, "SCB", None) if tensor.dtype == torch.int8 else None
    return scales if isinstance(scales, Tensor) else None


def _scaled_rows(tensor: Tensor) -> Tensor:
    """Compute the weight of a bitsandbytes 8-bit parameter."""
    scales = _row_scales(tensor)
    values = tensor.detach().as_subclass(Tensor).to(torch.float32)
    return values if scales is None else values * scales.reshape(-1, 1).to(torch.float32) / 127


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Give the shape of the values, which packed 4-bit parameters of bitsandbytes keep in their state."""
    return tuple(getattr(getattr(tensor, "quant_state", None), "shape", None) or tensor.shape)


def identity_of(tensor: Tensor) -> Hashable:
    """Tell two tensors of one storage: the memory of the tensor, or of the tensors that a subclass is made of."""
    inner = _inner_tensors(tensor)
    if inner:
        return (_class_name(tensor), *(identity_of(piece) for piece in inner))
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
    except Exception:  # noqa: BLE001 - another library's code may raise anything; the object itself identifies it
        return []
    return [piece for piece in pieces if isinstance(piece, Tensor)]


def _class_name(tensor: Tensor) -> str:
    """Name a tensor's class with the library that it comes from."""
    kind = type(tensor)
    return (
        f"{kind.__module__.partition('.')[0]} {kind.__qualname__}"
        if kind.__module__
        else kind.__qualname__
    )
