"""Placeholders of weights whose values lie elsewhere: ZeRO-3's empty tensors, FSDP's flat ones.

Both are stored as vectors. If they were counted as such, a checkpoint of placeholders would look
like a model that consists of norms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from spectail.models.lazy_tensor import LazyTensor, unreadable
from spectail.models.naming.kinds import kind_of
from spectail.models.naming.names import layer_name

ZERO3 = (
    "saved under ZeRO-3 without gathering: the file holds an empty tensor in place of the "
    "weight; run "
    "`python zero_to_fp32.py CHECKPOINT_DIR OUTPUT_DIR` (DeepSpeed puts that script into the "
    "checkpoint), or save again with stage3_gather_16bit_weights_on_model_save"
)
"""What to do about a checkpoint of DeepSpeed ZeRO-3."""
FSDP = (
    "{} of FSDP, which hold the weights joined end to end: save a full state dict instead "
    "(StateDictType.FULL_STATE_DICT, or `accelerate merge-weights CHECKPOINT_DIR OUTPUT_DIR` for "
    "a sharded one), or "
    "analyse a live model inside of FullyShardedDataParallel.summon_full_params(model)"
)
"""What to do about a checkpoint of PyTorch FSDP."""
_FLAT = re.compile(r"(?:^|\.)_?flat_param(?:_\d+)?$")
"""FSDP's flat parameters."""
_VECTOR = re.compile(
    r"(?:^|[._])(?:bias|\w*norm\w*|ln|ln_\w+|\w*_ln|bn\d*|rms\w*|scale|gamma|beta)(?:\.weight)?$",
    re.IGNORECASE,
)
"""Parameters that are vectors in every model."""
_NUMBER = re.compile(r"\d+")


def with_placeholders(tensors: Iterable[LazyTensor]) -> list[LazyTensor]:
    """Replace every placeholder of a weight matrix by an unreadable row that says what to do."""
    tensors = list(tensors)
    flat = [stored for stored in tensors if _FLAT.search(stored.name) and len(stored.shape) == 1]
    names = {stored.name for stored in flat}
    shapes = _shapes_by_pattern(tensors)
    result = []
    for stored in tensors:
        if stored.name in names and len(stored.shape) == 1:
            # One row for all of them: flat parameters do not correspond to layers.
            if stored is flat[0]:
                count = f"{len(flat)} flat parameter{'s' * (len(flat) > 1)}"
                result.append(unreadable(stored.name, (0, 0), stored.dtype, FSDP.format(count)))
        elif stored.shape == (0,) and stored.is_floating:
            result.append(_placeholder(stored, shapes))
        else:
            result.append(stored)
    return result


def _shapes_by_pattern(tensors: Iterable[LazyTensor]) -> dict[str, tuple[int, ...]]:
    """Map the names of tensors that have values, with # for numbers, to their shapes."""
    return {
        _NUMBER.sub("#", stored.name): stored.shape for stored in tensors if stored.shape != (0,)
    }


def _placeholder(stored: LazyTensor, shapes: dict[str, tuple[int, ...]]) -> LazyTensor:
    """Describe an empty tensor as an unreadable weight if it stands for a matrix.

    It does if the same tensor of another block is a matrix, or if its name says so.
    """
    # ZeRO-3 keeps small parameters whole, so another block may show the true shape.
    like = shapes.get(_NUMBER.sub("#", stored.name))
    if like is not None:
        return stored if len(like) < 2 else unreadable(stored.name, like, stored.dtype, ZERO3)
    name = layer_name(stored.name)
    is_weight = stored.name.endswith("weight") or kind_of(name) != "linear"
    if not is_weight or _VECTOR.search(stored.name):
        return stored
    return unreadable(stored.name, (0, 0), stored.dtype, ZERO3)
