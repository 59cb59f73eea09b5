"""The layers of a model on the meta device, live and as its file would
give them, without any values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spectail.models.build import build_source
from spectail.models.lazy_tensor import LazyTensor
from spectail.models.live.walk import module_source
from spectail.models.source import Source

from .saved import Saved


def live_source(model: nn.Module) -> Source:
    """The layers of the live model; its parameters are replaced by ones of a
    single value, which take no memory."""
    made: dict[int, nn.Parameter] = {}
    for _, owner in model.named_modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = made.setdefault(id(parameter), _like(parameter))
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = _like(buffer).detach()
    return module_source(model, fingerprint=False)


def _like(tensor: Tensor) -> nn.Parameter:
    value = torch.zeros((), dtype=tensor.dtype)
    return nn.Parameter(value.expand(tensor.shape), requires_grad=False)


def file_source(saved: Mapping[str, Saved], config: Mapping[str, object]) -> Source:
    """The layers of a file with these tensors."""
    tensors = [
        LazyTensor(name, tensor.shape, tensor.dtype, _no_values) for name, tensor in saved.items()
    ]
    return build_source("file", "", tensors, config=config)


def _no_values(index: object) -> Tensor:
    raise AssertionError("nothing is read in the sweep")
