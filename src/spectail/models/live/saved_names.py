"""Find the names that a live model's layers have in the file that transformers writes.

transformers renames and converts parameters when it loads and saves: experts are fused in memory
but separate in the file, and a vision transformer's ``q_proj`` is called
``attention.attention.query`` there. This module asks the library itself what it would write, with
tensors that have no values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from spectail.models.build import build_source
from spectail.models.lazy_tensor import Index, LazyTensor, dtype_name
from spectail.models.naming.names import canonical_name, clean_names
from spectail.models.source import Layer

_PIECE = re.compile(r"parametrizations\.(\w+)\.original\d*$|(?<=weight)_[gv]$")
"""Ending of the name of a piece of a parametrised weight."""
_EXPERT = re.compile(r"\[(\d+)\]|(?:^|\.)\w*experts\.(\d+)(?=\.|$)")
"""An expert's number in a layer's name."""
_PART = re.compile(r"(?:\.(?:q|k|v|gate|up|[ifgorzn]))?$")
"""The part of a fused parameter at the end of a layer's name; matches the empty text for a whole
one."""

Written: TypeAlias = "dict[str, _Traced]"
"""The tensors of a saved file by their names."""


class _Traced(Tensor):
    """A tensor without values that remembers which parameters it was computed from."""

    sources: frozenset[str]

    @staticmethod
    def of(tensor: Tensor, sources: frozenset[str]) -> _Traced:
        """Mark a tensor as computed from these parameters."""
        marked = tensor.as_subclass(_Traced)
        marked.sources = sources
        return marked

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Mark a function's results as computed from whatever its arguments came from."""
        inputs = [leaf.sources for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, _Traced)]
        # Without this the call below would come back here and recurse without end.
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        sources: frozenset[str] = frozenset().union(*inputs)
        return tree_map_only(Tensor, lambda tensor: _Traced.of(tensor, sources), result)


def saved_names(
    module: nn.Module, layers: Sequence[Layer], config: Mapping[str, Any]
) -> dict[str, str]:
    """Map layers of a transformers model to their names in its saved file, if those differ.

    The mapping is empty for every other module. Names that ``canonical_name`` makes equal are left
    out.

    Args:
        module: The live model, possibly in wrappers.
        layers: Its layers, as ``module_source`` lists them.
        config: Its configuration.

    """
    written = _written(_inner(module))
    if not written:
        return {}
    stored = _stored_layers(written, config)
    live: dict[str, list[Layer]] = {}
    for layer in layers:
        live.setdefault(layer.tensor.name, []).append(layer)
    found: dict[str, str] = {}
    for parameter, group in live.items():
        found |= _partners(group, stored.get(parameter, []))
    return {
        name: saved
        for name, saved in found.items()
        if canonical_name(name) != canonical_name(saved)
    }


def _stored_layers(written: Written, config: Mapping[str, Any]) -> dict[str, list[Layer]]:
    """Map each live parameter to the layers of the file that are computed from it."""
    written = dict(zip(clean_names(list(written)), written.values(), strict=True))
    tensors = [
        LazyTensor(n, tuple(t.shape), dtype_name(t.dtype), _no_values) for n, t in written.items()
    ]
    sources: dict[str, set[str]] = {}
    for name, tensor in written.items():
        sources.setdefault(_assembled(name), set()).update(map(_assembled, tensor.sources))
    stored: dict[str, list[Layer]] = {}
    # The file's tensors become layers exactly as they do when the file is opened.
    for layer in build_source("file", "", tensors, config=config).layers:
        for parameter in sources.get(layer.tensor.name, ()):
            stored.setdefault(parameter, []).append(layer)
    return stored


def saved_modules(module: nn.Module) -> dict[str, str]:
    """Map modules to their names in the file, if one tensor there holds their weight alone."""
    written = _written(_inner(module))
    places: dict[str, list[str]] = {}
    for name, tensor in written.items():
        for source in tensor.sources:
            # An empty name marks a tensor of the file that is computed from several parameters.
            places.setdefault(source, []).append(name if len(tensor.sources) == 1 else "")
    return {
        parameter.removesuffix(".weight"): name.removesuffix(".weight")
        for parameter, (name, *more) in places.items()
        if parameter.endswith(".weight")
        and name.endswith(".weight")
        and not more
        and name != parameter
    }


def _inner(module: nn.Module) -> nn.Module:
    """Unwrap a model from DDP, torch.compile and similar wrappers."""
    while isinstance(
        inner := getattr(module, "module", getattr(module, "_orig_mod", None)), nn.Module
    ):
        module = inner
    return module


def _written(model: nn.Module) -> Written:
    """Return what transformers (5 or later) would write for a model; empty for others."""
    if not any(kind.__module__ == "transformers.modeling_utils" for kind in type(model).__mro__):
        return {}
    try:
        from transformers.core_model_loading import revert_weight_conversion
        from transformers.modeling_utils import remove_tied_weights_from_state_dict
    except ImportError:
        return {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    traced: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for (name, parameter), clean in zip(
        parameters.items(), clean_names(list(parameters)), strict=True
    ):
        # Tied parameters count under the first of their names, as in ``module_source``.
        source = first.setdefault(id(parameter), clean)
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        traced[name] = _Traced.of(empty, frozenset({source}))
    # The steps of ``save_pretrained`` that change names and tensors, without those that write.
    library: Any = model
    try:
        kept = remove_tied_weights_from_state_dict(traced, library)
        written: Any = revert_weight_conversion(library, kept)
        return dict(written)
    except Exception:  # noqa: BLE001 - another library's conversions may raise anything
        # File and live names are then paired by other rules: see ``naming.pairing``.
        return {}


def _no_values(index: Index) -> Tensor:
    """Stand in for values: only names and shapes matter here."""
    raise NotImplementedError


def _assembled(name: str) -> str:
    """Return the name of the weight that a piece of a parametrised weight belongs to."""
    return _PIECE.sub(lambda match: match[1] or "", name)


def _partners(live: Sequence[Layer], stored: Sequence[Layer]) -> dict[str, str]:
    """Pair the live layers of one parameter with those of the file, if each pair is unambiguous."""
    if len(live) == len(stored) == 1:
        return {live[0].name: stored[0].name}
    found: dict[str, str] = {}
    # From the most to the least specific key. A pair counts only if each side has exactly one layer
    # of that key; later keys see the layers that are still unpaired.
    for key in (
        lambda layer: layer.kind,
        lambda layer: _part(layer.name),
        lambda layer: _stem(layer.name),
        _nothing,
    ):
        left, right = _keyed(live, key, found), _keyed(stored, key, found.values())
        found |= {
            left[k][0]: right[k][0] for k in left if len(left[k]) == 1 == len(right.get(k, ()))
        }
    return found


def _stem(name: str) -> str:
    """Return the last piece of a name without ``_proj``: ``gate`` for ``mlp.gate_proj``."""
    return name.rpartition(".")[2].removesuffix("_proj")


def _nothing(layer: Layer) -> str:
    """Return the same key for every layer."""
    return ""


def _keyed(
    layers: Sequence[Layer], key: Callable[[Layer], str], done: Iterable[str]
) -> dict[tuple[int, str], list[str]]:
    """Group the names of unpaired layers by expert and another key.

    Experts are counted from the parameter's first one, since a file may number them within its own
    tensor.
    """
    experts = {layer.name: _expert(layer.name) for layer in layers}
    first = min(experts.values(), default=0)
    result: dict[tuple[int, str], list[str]] = {}
    paired = set(done)
    for layer in layers:
        if layer.name not in paired:
            result.setdefault((experts[layer.name] - first, key(layer)), []).append(layer.name)
    return result


def _expert(name: str) -> int:
    """Return the number of the expert in a layer's name, 0 if it is none."""
    match = _EXPERT.search(name)
    return int(match[1] or match[2]) if match else 0


def _part(name: str) -> str:
    """Return the part of a fused parameter, such as ``.gate``; empty for a whole one."""
    match = _PART.search(name)
    return match[0] if match else ""
