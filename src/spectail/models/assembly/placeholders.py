"""Tensors that stand for weights whose values lie elsewhere: ZeRO-3's empty ones, and FSDP's flat ones.

Both are stored as vectors, and would be counted as such: a checkpoint of placeholders would look
like a model of norms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from spectail.models.lazy_tensor import LazyTensor, unreadable
from spectail.models.naming.blocks import kind_of
from spectail.models.naming.names import layer_name

ZERO3 = (
    "saved under ZeRO-3 without gathering: the file holds an empty tensor in place of the weight; run "
    "`python zero_to_fp32.py CHECKPOINT_DIR OUTPUT_DIR` (DeepSpeed puts that script into the checkpoint), or "
    "save again with stage3_gather_16bit_weights_on_model_save"
)
FSDP = (
    "{} of FSDP, which hold the weights joined end to end: save a full state dict instead "
    "(StateDictType.FULL_STATE_DICT, or `accelerate merge-weights CHECKPOINT_DIR OUTPUT_DIR` for a sharded one), or "
    "analyse a live model inside of FullyShardedDataParallel.summon_full_params(model)"
)
_FLAT = re.compile(r"(?:^|\.)_?flat_param(?:_\d+)?$")
_VECTOR = re.compile(
    r"(?:^|[._])(?:bias|\w*norm\w*|ln|ln_\w+|\w*_ln|bn\d*|rms\w*|scale|gamma|beta)(?:\.weight)?$",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d+")


def with_placeholders(tensors: Iterable[LazyTensor]) -> list[LazyTensor]:
    """Give every placeholder of a weight matrix a row that says what to do; the rest stays as it is."""
    tensors = list(tensors)
    flat = [stored for stored in tensors if _FLAT.search(stored.name) and len(stored.shape) == 1]
    shapes = _shapes_by_pattern(tensors)
    result = []
    for stored in tensors:
        if stored in flat:
            if stored is flat[0]:
                count = f"{len(flat)} flat parameter{'s' * (len(flat) > 1)}"
                result.append(unreadable(stored.name, (0, 0), stored.dtype, FSDP.format(count)))
        elif stored.shape == (0,) and stored.is_floating:
            result.append(_placeholder(stored, shapes))
        else:
            result.append(stored)
    return result


def _shapes_by_pattern(tensors: Iterable[LazyTensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that have values, by their names without numbers."""
    return {
        _NUMBER.sub("#", stored.name): stored.shape for stored in tensors if stored.shape != (0,)
    }


def _placeholder(stored: LazyTensor, shapes: dict[str, tuple[int, ...]]) -> LazyTensor:
    """Describe an empty tensor: as a weight where its like in another block is one, or else its name says so."""
    like = shapes.get(_NUMBER.sub("#", stored.name))
    if like is not None:
        return stored if len(like) < 2 else unreadable(stored.name, like, stored.dtype, ZERO3)
    name = layer_name(stored.name)
    is_weight = stored.name.endswith("weight") or kind_of(name) != "linear"
    if not is_weight or _VECTOR.search(stored.name):
        return stored
    return unreadable(stored.name, (0, 0), stored.dtype, ZERO3)
