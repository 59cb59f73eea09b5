"""Decide whether a live module's parameter is a weight matrix, by the module that owns it.

Linear layers, convolutions, embeddings, recurrent layers, attention and experts own weight
matrices. What any other module holds (class tokens, position tables, ``A_log``) is judged by its
name, as in a file, so that a model and its checkpoint give the same layers.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from spectail.models.lazy_tensor import LazyTensor
from spectail.models.naming.not_weights import UNKNOWN, no_matrix

OWNERS = (
    nn.Linear,
    nn.Bilinear,
    _ConvNd,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)
"""Modules whose weights with two or more dimensions are weight matrices."""
NORMS = (nn.LayerNorm, nn.GroupNorm, _NormBase, nn.RMSNorm)
"""Modules whose parameters scale their input entry by entry, whatever their shape."""

IS_WEIGHT = ""
"""The answer of :func:`no_matrix_of` for a parameter whose owner makes it a weight matrix."""


def no_matrix_of(
    owner: nn.Module, name: str, tensor: LazyTensor, *, among_weights: bool = True
) -> str | None:
    """Return why a parameter is no weight matrix; ``IS_WEIGHT`` if it is one.

    The answer is None for pieces of a parametrised weight, where only the name of the assembled
    weight can tell.

    Args:
        owner: The module that holds the parameter.
        name: The parameter's name in the owner.
        tensor: Its description, with its name in the model.
        among_weights: Whether the model calls its matrices ``weight``; see ``naming.not_weights``.

    """
    # Its tensors are called ``original0``, ``original1``..., which tells nothing.
    if isinstance(owner, ParametrizationList):
        return None
    if isinstance(owner, OWNERS) and "weight" in name:
        return IS_WEIGHT
    if isinstance(owner, NORMS):
        return f"the scale of {type(owner).__name__}"
    # The same rule as for files, which know no owners.
    reason = no_matrix(
        tensor.name, tensor.shape, is_complex=tensor.is_complex, among_weights=among_weights
    )
    if reason is None or (_is_expert(owner, tensor) and "bias" not in name):
        return IS_WEIGHT
    kind = type(owner).__name__
    if reason == UNKNOWN:
        return (
            f"a parameter of {kind} that no linear, convolution, embedding, "
            "recurrent or experts module owns"
        )
    return f"{reason} of {kind}"


def _is_expert(owner: nn.Module, tensor: LazyTensor) -> bool:
    """Whether a module is a stack of experts, by transformers' attributes or by its class name."""
    marked = hasattr(owner, "is_transposed") and hasattr(owner, "is_concatenated")
    return len(tensor.shape) == 3 and (marked or type(owner).__name__.endswith("Experts"))
