"""From layers to modules, which other tools address: parts of a fused weight share one value."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias, TypeVar

from spectail.allocation.allocation import Allocation, LayerValue
from spectail.basics.texts import first_names
from spectail.errors import ExportError
from spectail.models.naming.pairing import Pairing, pair_names
from spectail.models.naming.stored import stored_name

# Experts in one tensor ("experts[3]"), matrices of torch's attention and recurrent modules, LoRA
# deltas have no module of their own.
_NO_MODULE = re.compile(
    r"\[\d+\]|(?:^|\.)(?:in_proj_weight|weight_(?:ih|hh|hr)\w*)(?:\.|$)|\.lora$"
)
SHOWN = 5
"""How many names an error lists before it counts the rest."""


def check_target(allocation: Allocation, target: str, tool: str) -> None:
    """Refuse an allocation of another target than the tool takes."""
    if allocation.target != target:
        raise ExportError(
            f"{tool} takes an allocation of {target}, but this one is of {allocation.target}"
        )


def module_name(layer: str) -> str | None:
    """Return the module whose weight holds a layer.

    None for layers that lie in a tensor without a module of its own, such as fused experts.

    >>> module_name("h.0.attn.c_attn.q"), module_name("model.layers.0.mlp.up_proj")
    ('h.0.attn.c_attn', 'model.layers.0.mlp.up_proj')
    """
    if _NO_MODULE.search(layer):
        return None
    return stored_name(layer)


def by_module(
    allocation: Allocation, tool: str, modules: Modules | None = None
) -> dict[str, float]:
    """Return one value per module, in the allocation's order."""
    problem = f"{tool} addresses modules by name, and these layers are none"
    return grouped(allocation, module_namer(allocation, modules), problem)


def module_namer(
    layers: Iterable[str], modules: Modules | None = None
) -> Callable[[str], str | None]:
    """Return ``module_name``; with the model's modules, a layer that is one keeps its name.

    ``attn.qkv.q`` is a part of ``attn.qkv`` in most models, and a module of its own in some.
    """
    if modules is None:
        return module_name
    cut = [name for name in layers if module_name(name) not in (None, name)]
    own = _paired(cut, modules).pairs
    return lambda layer: layer if layer in own else module_name(layer)


def grouped(
    allocation: Allocation, place: Callable[[str], str | None], problem: str
) -> dict[str, float]:
    """Return one value for each place; layers of one place share a value within the budget.

    The sparsity of a place is the mean of its layers, weighted by numel, which keeps the total. The
    width of a place is the largest width in use that is not above this mean.

    Raises:
        ExportError: ``problem`` with the names of the layers that have no place.

    """
    members = _members(allocation, place, problem)
    # The mean of widths need not be a width, so that one in use is taken instead.
    widths = sorted(set(allocation.values())) if allocation.target == "bits" else []
    return {where: _together(shares, widths) for where, shares in members.items()}


def grouped_formats(
    allocation: Allocation, place: Callable[[str], str | None], problem: str
) -> dict[str, str]:
    """Return one format for each place; layers of one place share one within the budget.

    It is the format of most bits in use that has no more than their mean.

    Raises:
        ExportError: ``problem`` with the names of the layers that have no place.

    """
    members = _members(allocation, place, problem)
    # The scales of a format may take more bits in one layer than in another: the most count.
    bits: dict[str, float] = {}
    for share in allocation.shares:
        bits[share.format] = max(share.value, bits.get(share.format, 0.0))
    return {where: _one_format(shares, bits) for where, shares in members.items()}


def _one_format(shares: list[LayerValue], bits: Mapping[str, float]) -> str:
    """Return the common format of layers; ``bits`` holds the size of every format in use."""
    own = {share.format: bits[share.format] for share in shares}
    if len(own) == 1:
        return shares[0].format
    mean = math.fsum(bits[share.format] * share.numel for share in shares) / sum(
        share.numel for share in shares
    )
    return max((name for name in bits if bits[name] <= mean), key=lambda name: bits[name])


def _members(
    allocation: Allocation, place: Callable[[str], str | None], problem: str
) -> dict[str, list[LayerValue]]:
    """Return the layers of each place; ExportError with those that have none."""
    # All layers without a place are collected, so that one error names them together.
    members: dict[str, list[LayerValue]] = {}
    homeless = []
    for share in allocation.shares:
        where = place(share.name)
        if where is None:
            homeless.append(share.name)
        else:
            members.setdefault(where, []).append(share)
    if homeless:
        raise ExportError(
            f"{problem}: {shown(homeless)}; make the allocation without them, with exclude"
        )
    return members


def _together(shares: list[LayerValue], widths: list[float]) -> float:
    """Return the common value of layers: one of ``widths`` if there are any, else the mean."""
    # Equal values are returned as they are: a mean could change the last digit.
    first = shares[0].value
    if all(share.value == first for share in shares):
        return first
    mean = math.fsum(share.value * share.numel for share in shares) / sum(
        share.numel for share in shares
    )
    return max(width for width in widths if width <= mean) if widths else mean


V = TypeVar("V", float, str)

Modules: TypeAlias = "Iterable[str] | Mapping[str, str]"
"""Names of a live model's modules; a mapping also gives the name of each in the saved file."""


def kept(modules: Modules) -> Modules:
    """Return names that can be gone through more than once."""
    return modules if isinstance(modules, Mapping) else list(modules)


def placed(values: Mapping[str, V], modules: Modules) -> tuple[dict[str, V], list[str]]:
    """Return the values by module, in the modules' order, and the names that are no module.

    An allocation made from a file uses the file's names; ``pair_names`` pairs them with the
    model's.

    Raises:
        ExportError: a name that could be several modules.

    """
    modules = kept(modules)
    pairing = _paired(list(values), modules)
    # Choosing one of several could prune the wrong layer.
    for name, several in pairing.ambiguous.items():
        raise ExportError(
            f"{name} could be any of the modules {shown(several)}: call it as the model does"
        )
    # In the modules' order: llm-compressor pairs lists with modules by position.
    found = {module: values[name] for name, module in pairing.pairs.items()}
    return {name: found[name] for name in modules if name in found}, list(pairing.left_only)


def _paired(names: list[str], modules: Modules) -> Pairing:
    """Pair names with the modules of a live model, also by their names in its saved file."""
    saved = modules if isinstance(modules, Mapping) else {}
    renamed = {name: other for name, other in saved.items() if other != name}
    return pair_names(names, list(modules), right_saved=renamed)


def shown(names: Iterable[str]) -> str:
    """List the first names and count the rest."""
    return first_names(names, SHOWN)
