"""From layers to parameters of the live model, and patterns that match these and no others."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeAlias

from spectail.allocation.allocation import Allocation
from spectail.errors import ExportError
from spectail.export.parts import grouped, module_name, shown
from spectail.models.naming.names import canonical_name, layer_name
from spectail.models.naming.pairing import Pairing, pair_names
from spectail.models.naming.stored import stored_name

Parameters: TypeAlias = "Iterable[str] | Mapping[str, str]"
"""Names of a live model's parameters; a mapping also gives the name of each in the saved file."""

_EXPERT = re.compile(r"^(.*experts)\.\d+\.(gate|up|down)_proj$")
"""An expert that files store by itself, as ``canonical_name`` writes it."""


def by_parameter(allocation: Allocation, parameters: Parameters | None = None) -> dict[str, float]:
    """Return one value per parameter of the live model, by its name without ``.weight``.

    Parts of one parameter share the mean of their values, weighted by numel. Without the model's
    ``parameters``, names are those of the layers.

    Raises:
        ExportError: a layer that no parameter holds, or that several could hold.

    """
    names = {name: stored_name(name) for name in allocation}
    if parameters is None:
        return grouped(allocation, names.__getitem__, "")
    # "attn.qkv.q" is a part of "attn.qkv" in most models, and a module of its own in some.
    cut = [name for name, whole in names.items() if whole != name]
    names |= {name: name for name in _paired(cut, parameters).pairs}
    homes = _homes(list(dict.fromkeys(names.values())), parameters)
    return grouped(
        allocation,
        lambda name: homes.get(names[name]),
        "the model has no parameter for these layers: give the folder of the model that was "
        "analysed",
    )


def known_parameters(allocation: Allocation, parameters: Parameters | None = None) -> list[str]:
    """Return the model's parameter names; without them, those of all layers of the analysis."""
    if parameters is not None:
        return list(parameters)
    layers = [*allocation, *(layer.name for layer in allocation.left_out)]
    # A layer without a module of its own is a parameter itself; others are the weight of a module.
    return list(
        dict.fromkeys(
            f"{module}.weight" if (module := module_name(name)) else stored_name(name)
            for name in layers
        )
    )


def _homes(layers: list[str], parameters: Parameters) -> dict[str, str]:
    """Map names of stored weights to the live model's parameters, without ``.weight``."""
    pairing = _paired(layers, parameters)
    for name, several in pairing.ambiguous.items():
        raise ExportError(
            f"{name} could be any of the parameters {shown(several)}: call it as the model does"
        )
    homes = dict(pairing.pairs)
    live = list(map(layer_name, parameters))
    # transformers fuses the experts that a file stores one by one.
    for name in pairing.left_only:
        if match := _EXPERT.match(canonical_name(name)):
            fused = (f"{match[1]}.{match[2]}_proj", f"{match[1]}.gate_up_proj")
            found = pair_names(fused[:1] if match[2] == "down" else fused, live).pairs
            homes |= {name: place for place in found.values()}
    return homes


def _paired(layers: list[str], parameters: Parameters) -> Pairing:
    """Pair names with a live model's parameters, also by their names in its saved file."""
    saved = parameters if isinstance(parameters, Mapping) else {}
    renamed = {
        layer_name(name): layer_name(other) for name, other in saved.items() if other != name
    }
    return pair_names(layers, list(map(layer_name, parameters)), right_saved=renamed)


def check_patterns(
    patterns: Iterable[str],
    names: Collection[str],
    forbidden: Collection[str],
    matches: Callable[[str, str], bool],
    *,
    hint: str = "",
) -> None:
    """Refuse a pattern that matches no name, all names, or one that is ``forbidden``.

    Args:
        patterns: Patterns as the tool reads them.
        names: All names of the model that the tool compares them with.
        forbidden: Those that must not match.
        matches: Says whether a pattern matches a name, by the tool's own rule.
        hint: What the user may have written otherwise, for the first error.

    Raises:
        ExportError: in one line, the pattern and what it matches.

    """
    for pattern in patterns:
        try:
            found = [name for name in names if matches(pattern, name)]
        except re.error as error:
            raise ExportError(
                f"the pattern {pattern!r} is no regular expression: {error}"
            ) from None
        if not found:
            raise ExportError(
                f"the pattern {pattern!r} matches nothing in the model, "
                f"whose names are like {shown(list(names)[:1])}{hint}"
            )
        if len(found) == len(names) and len(names) > 1:
            raise ExportError(f"the pattern {pattern!r} matches everything in the model")
        wrong = [name for name in found if name in forbidden]
        if wrong:
            raise ExportError(
                f"the pattern {pattern!r} also matches {shown(wrong)}, which the allocation freezes"
            )
