"""What save_pretrained would write for a model on the meta device: names, shapes and
where each tensor comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only


class Traced(Tensor):
    """A tensor that remembers which parameters it was computed from."""

    sources: frozenset[str] = frozenset()

    @staticmethod
    def of(tensor: Tensor, sources: frozenset[str]) -> Traced:
        """Mark a tensor."""
        marked = tensor.as_subclass(Traced)
        marked.sources = sources
        return marked

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves, _ = tree_flatten((args, kwargs))
        sources = frozenset().union(*(leaf.sources for leaf in leaves if isinstance(leaf, Traced)))
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        return tree_map_only(Tensor, lambda tensor: Traced.of(tensor, sources), result)


@dataclass(frozen=True)
class Saved:
    """One tensor of a saved file."""

    shape: tuple[int, ...]
    dtype: str
    sources: frozenset[str]
    """Names of the live parameters whose values it holds."""


def saved_tensors(model: Any) -> Mapping[str, Saved]:
    """The content of the file as ``save_pretrained`` writes it: no ignored keys, no
    tied weights, converted back."""
    from transformers.core_model_loading import revert_weight_conversion

    state = {
        name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)
    }
    for key in model._keys_to_ignore_on_save or ():
        state.pop(key, None)
    traced: dict[str, Any] = {
        name: Traced.of(tensor, frozenset({name})) for name, tensor in _untied(model, state).items()
    }
    return {
        name: Saved(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.sources)
        for name, tensor in revert_weight_conversion(model, traced).items()
    }


def _untied(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep one name of each tied weight: the one that the model does not list as tied to
    another."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    return dict(remove_tied_weights_from_state_dict(dict(state), model))
