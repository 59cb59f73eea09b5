"""From layers to what another tool can address: parts of a fused weight get one value together."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from spectail.allocation.allocation import Allocation, LayerValue
from spectail.errors import ExportError
from spectail.models.naming.pairing import pair_names

_FUSED = re.compile(
    r"^(.+\.(?:\w*qkv\w*|W_pack|c_attn|query_key_value|gate_up_proj))\.(?:q|k|v|gate|up)$"
)
_NO_MODULE = re.compile(
    r"\[\d+\]|(?:^|\.)(?:in_proj_weight|weight_(?:ih|hh|hr)\w*)(?:\.|$)|\.lora$"
)
SHOWN = 5
"""How many names an error lists before it counts the rest."""


def check_target(allocation: Allocation, target: str, tool: str) -> None:
    """Refuse an allocation of something else."""
    if allocation.target != target:
        raise ExportError(
            f"{tool} takes an allocation of {target}, but this one is of {allocation.target}"
        )


def module_name(layer: str) -> str | None:
    """The module whose weight holds a layer; None for experts in one tensor and the like, which are no modules.

    >>> module_name("h.0.attn.c_attn.q"), module_name("model.layers.0.mlp.up_proj")
    ('h.0.attn.c_attn', 'model.layers.0.mlp.up_proj')
    """
    if _NO_MODULE.search(layer):
        return None
    fused = _FUSED.match(layer)
    return fused[1] if fused else layer


def by_module(allocation: Allocation, tool: str) -> dict[str, float]:
    """One value per module, in the allocation's order."""
    return grouped(
        allocation, module_name, f"{tool} addresses modules by name, and these layers are none"
    )


def grouped(
    allocation: Allocation, place: Callable[[str], str | None], problem: str
) -> dict[str, float]:
    """One value for each place; layers that share one get one together, and none leaves the budget.

    Sparsities are averaged by numel, which keeps the total; of widths the largest one in use counts
    that is not above that average.

    Raises:
        ExportError: ``problem`` with the names of the layers that have no place.

    """
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
    widths = sorted(set(allocation.values())) if allocation.target == "bits" else []
    return {where: _together(shares, widths) for where, shares in members.items()}


def _together(shares: list[LayerValue], widths: list[float]) -> float:
    first = shares[0].value
    if all(share.value == first for share in shares):
        return first
    mean = math.fsum(share.value * share.numel for share in shares) / sum(
        share.numel for share in shares
    )
    return max(width for width in widths if width <= mean) if widths else mean


Modules: TypeAlias = "Iterable[str] | Mapping[str, str]"
"""Names of a live model's modules; a mapping says what each is called in the saved file too."""


def placed(values: Mapping[str, float], modules: Modules) -> tuple[dict[str, float], list[str]]:
    """The values under the names of a model's modules, in their order, and the names that are none of them.

    An allocation made from a file knows a module by its name there: names pair as ``pair_names``
    has it.

    Raises:
        ExportError: a name that could be several modules.

    """
    saved = (
        {name: other for name, other in modules.items() if other != name}
        if isinstance(modules, Mapping)
        else {}
    )
    names = list(modules)
    pairing = pair_names(list(values), names, right_saved=saved)
    for name, several in pairing.ambiguous.items():
        raise ExportError(
            f"{name} could be any of the modules {shown(several)}: call it as the model does"
        )
    found = {module: values[name] for name, module in pairing.pairs.items()}
    return {module: found[module] for module in names if module in found}, list(pairing.left_only)


def shown(names: Iterable[str]) -> str:
    """The first names and how many more there are."""
    names = list(names)
    return ", ".join(names[:SHOWN]) + (
        f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    )
