"""Convert weights as JAX and TensorFlow store them to torch's names and orientation.

A Dense kernel is (in, out) and a convolution's is (*window, in, out). Attention keeps heads in a
dimension of their own. A parameter that torch calls ``weight`` is called kernel, embedding(s),
scale or gamma.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from spectail.models.formats.ranges import permuted_tensor, reshaped_tensor
from spectail.models.lazy_tensor import Index, LazyTensor, piece_of

_RENAMED = {
    "kernel": "weight",
    "embedding": "weight",
    "embeddings": "weight",
    "scale": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "mean": "running_mean",
    "var": "running_var",
}
"""Names of parameters in Flax and Keras, and torch's."""
_HEADS_LAST = re.compile(r"(?:^|[._])(?:q|k|v|query|key|value)(?:_proj|_dense)?$")
"""Modules whose kernel is (in, heads, head_dim)."""
_HEADS_FIRST = re.compile(
    r"(?:^|[._])(?:o|out|output|attention_output|output_dense)(?:_proj|_dense)?$"
)
"""Modules whose kernel is (heads, head_dim, out)."""
_STACKED = re.compile(r"scan|stacked", re.IGNORECASE)
"""Modules whose kernels of several layers are stacked in a first dimension, as ``nn.scan`` does."""
_GATES = {4: (0, 1, 2, 3), 3: (1, 0, 2), 1: (0,)}
"""By the number of gates, the positions of torch's gates in Keras' order. LSTM: i, f, c, o in both.
GRU: z, r, h in Keras and r, z, n in torch."""


def as_torch(tensors: Mapping[str, LazyTensor]) -> list[LazyTensor]:
    """Convert tensors, given by their paths (``encoder.layer.0.query.kernel``), to torch's form."""
    # Both kernels of a recurrent layer need the gates' order, which only the recurrent one shows.
    recurrent = {
        path.removesuffix("recurrent_kernel")
        for path in tensors
        if path.endswith("recurrent_kernel")
    }
    result = []
    for path, stored in tensors.items():
        module, _, leaf = path.rpartition(".")
        prefix = f"{module}." if module else ""
        if prefix in recurrent and leaf in {"kernel", "recurrent_kernel"}:
            result.append(
                _recurrent(replace(stored, name=prefix), tensors[prefix + "recurrent_kernel"], leaf)
            )
        # The form (*window, in, multiplier). Flax stores (*window, 1, out) instead, which is
        # handled like any other convolution.
        elif (
            leaf == "kernel"
            and "depthwise" in module.lower()
            and len(stored.shape) > 2
            and stored.shape[-2] > 1
        ):
            result.append(_depthwise(replace(stored, name=f"{prefix}weight")))
        elif leaf in {"kernel", "pointwise_kernel"}:
            name = prefix + ("weight" if leaf == "kernel" else "pointwise.weight")
            result.append(_kernel(replace(stored, name=name), module))
        elif leaf == "depthwise_kernel":
            result.append(_depthwise(replace(stored, name=f"{prefix}depthwise.weight")))
        else:
            layout = (
                "embedding" if leaf.startswith("embedding") and len(stored.shape) == 2 else None
            )
            result.append(replace(stored, name=prefix + _RENAMED.get(leaf, leaf), layout=layout))
    return result


def from_flax(tensors: Sequence[LazyTensor]) -> list[LazyTensor]:
    """Convert the tensors of a file that keeps a Flax model under its own names; others stay.

    JAX models come as .npz (Google's ViT, BiT, MLP-Mixer) and as safetensors too. They are known
    by kernels beside which nothing is called ``weight``.
    """
    leaves = {re.split(r"[./]", stored.name)[-1] for stored in tensors}
    if "kernel" not in leaves or any(leaf.startswith("weight") for leaf in leaves):
        return list(tensors)
    return as_torch({stored.name.replace("/", "."): stored for stored in tensors})


def from_mlx(stored: LazyTensor) -> LazyTensor:
    """Bring a convolution of MLX, (out, *window, in), into torch's order; others stay.

    Three dimensions are also those of stacked experts, so that the name has to tell.
    """
    module, _, leaf = stored.name.rpartition(".")
    rank = len(stored.shape)
    is_conv = rank > 3 or (rank == 3 and "conv" in module.rpartition(".")[2].lower())
    if leaf != "weight" or not is_conv:
        return stored
    return replace(permuted_tensor(stored, (0, rank - 1, *range(1, rank - 1))), layout="conv")


def _kernel(stored: LazyTensor, module: str) -> LazyTensor:
    """Bring a kernel into the order (out, in, *window)."""
    shape = stored.shape
    rank = len(shape)
    if rank < 2:
        return stored
    if rank == 2:
        return permuted_tensor(stored, (1, 0))
    # A kernel with three dimensions is attention, a stack of layers
    # or a 1-D convolution. Only the module's name tells them apart.
    if rank == 3 and _HEADS_LAST.search(module):
        return permuted_tensor(reshaped_tensor(stored, (shape[0], shape[1] * shape[2])), (1, 0))
    if rank == 3 and _HEADS_FIRST.search(module):
        return permuted_tensor(reshaped_tensor(stored, (shape[0] * shape[1], shape[2])), (1, 0))
    if rank == 3 and _STACKED.search(module):
        return permuted_tensor(stored, (0, 2, 1))
    window = range(rank - 2)
    return replace(permuted_tensor(stored, (rank - 1, rank - 2, *window)), layout="conv")


def _depthwise(stored: LazyTensor) -> LazyTensor:
    """Bring a depthwise kernel from (*window, in, multiplier) to (in x multiplier, 1, *window)."""
    *window, inputs, multiplier = stored.shape
    rank = len(stored.shape)
    moved = permuted_tensor(stored, (rank - 2, rank - 1, *range(rank - 2)))
    return replace(reshaped_tensor(moved, (inputs * multiplier, 1, *window)), layout="conv")


def _recurrent(stored: LazyTensor, hidden: LazyTensor, leaf: str) -> LazyTensor:
    """Give a recurrent layer's kernel torch's name and order of gates."""
    # The recurrent kernel is (units, gates x units).
    units = hidden.shape[0]
    gates = _GATES.get(hidden.shape[1] // max(1, units), (0,))
    which = "hh" if leaf == "recurrent_kernel" else "ih"
    name = re.sub(r"(?:^|(?<=\.))(?:cell|lstm_cell|gru_cell|simple_rnn_cell)\.$", "", stored.name)
    return replace(
        stored,
        name=f"{name}weight_{which}_l0",
        shape=stored.shape[::-1],
        read=partial(_read_gates, stored, gates),
        identity=None,
    )


def _read_gates(stored: LazyTensor, gates: tuple[int, ...], index: Index) -> Tensor:
    """Transpose a kernel and put its gates in torch's order."""
    parts = stored.read(()).T.chunk(len(gates))
    return piece_of(torch.cat([parts[gate] for gate in gates]), index)
