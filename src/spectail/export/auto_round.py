"""auto-round: the format of every module, as its ``layer_config`` takes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from spectail.allocation.allocation import Allocation
from spectail.allocation.left_out import Code
from spectail.errors import ExportError
from spectail.export.formats import has_formats, integers_of, refuse
from spectail.export.llm_compressor import check_group_size
from spectail.export.parts import (
    Modules,
    V,
    by_module,
    check_target,
    grouped_formats,
    kept,
    module_namer,
    placed,
    shown,
)
from spectail.export.tool import Tool

_KNOWN = "int2, int3, int4, int8, w4a16, w8a16"
_FULL: dict[str, Any] = {"bits": 16, "act_bits": 16, "data_type": "float", "act_data_type": "float"}
"""A module that is not quantised."""
_PACKED = (2, 3, 4, 8)
"""Widths that its own format stores."""
_UNTOUCHED = frozenset({Code.EMBEDDING, Code.HEAD, Code.NORM, Code.NO_WEIGHT, Code.LORA})
"""Reasons for which a layer is left out that auto-round leaves alone without being told."""


@dataclass(frozen=True)
class AutoRound(Tool):
    """JSON with the ``layer_config`` of ``AutoRound(model, layer_config=...)``."""

    name: ClassVar[str] = "auto-round"
    takes: ClassVar[str] = "bits"
    tried: ClassVar[str] = (
        "0.15.1: rounds a small Llama in several widths, and transformers loads it again"
    )

    modules: Modules | None = None
    """Names of the model's modules."""
    group_size: int = 128
    """Weights along a row that share a scale, for widths."""

    @classmethod
    def options_for(cls, allocation: Allocation) -> list[str]:
        """Return the names of its options; formats have groups of their own."""
        return ["modules", *([] if has_formats(allocation) else ["group_size"])]

    def text(self, allocation: Allocation) -> str:
        """Return the configuration as JSON: see ``layer_config``."""
        found = layer_config(allocation, self.modules, group_size=self.group_size)
        return json.dumps(found, indent=1) + "\n"

    def remark(self, allocation: Allocation) -> str:
        """Remark on names that nobody has checked."""
        if self.modules is not None:
            return ""
        return "names are not checked against the model's modules: give --model for that"


def layer_config(
    allocation: Allocation, modules: Modules | None = None, *, group_size: int = 128
) -> dict[str, dict[str, Any]]:
    """Return the format of every module by its full name.

    auto-round gives every linear layer of a block that is not named the format of its ``scheme``,
    so that layers which are left out of the allocation are named too, at 16 bits. It takes a name
    that is no module for a part of names, so give the model's ``modules`` to have them checked.

    Raises:
        ExportError: not an allocation of bits, a format that auto-round does not have, or a layer
            that is no module.

    """
    check_target(allocation, "bits", "auto-round")
    check_group_size(group_size)
    modules = None if modules is None else kept(modules)
    found: dict[str, dict[str, Any]]
    if has_formats(allocation):
        formats = grouped_formats(allocation, module_namer(allocation, modules), _PROBLEM)
        found = {name: _format(own) for name, own in _checked(formats, modules).items()}
    else:
        widths = _checked(by_module(allocation, "auto-round", modules), modules)
        found = {name: _width(int(bits), group_size) for name, bits in widths.items()}
    return found | _left_alone(allocation, modules, set(found))


_PROBLEM = "auto-round addresses modules by name, and these layers are none"


def _checked(values: dict[str, V], modules: Modules | None) -> dict[str, V]:
    """Return the values under the names of the model's modules; refuse names that are none."""
    if modules is None:
        return values
    found, lost = placed(values, modules)
    if lost:
        raise ExportError(
            f"the model has no module {shown(lost)}: give the folder of the model that was "
            "analysed, or make the allocation without them, with exclude"
        )
    return found


def _left_alone(
    allocation: Allocation, modules: Modules | None, named: set[str]
) -> dict[str, dict[str, Any]]:
    """Return the layers that stay at full precision, which auto-round would quantise unasked."""
    left = [layer.name for layer in allocation.left_out if layer.why.code not in _UNTOUCHED]
    names = dict.fromkeys(filter(None, map(module_namer(left, modules), left)))
    if modules is not None:
        # A layer of the file that the live model lacks cannot be quantised.
        names = dict.fromkeys(placed(dict.fromkeys(names, 16.0), modules)[0])
    return {name: dict(_FULL) for name in names if name not in named}


def _format(name: str) -> dict[str, Any]:
    """Return auto-round's words for a format.

    It rounds to fp8 and nvfp4 as well, but what it then saves beside integers does not load again.
    """
    integers = integers_of(name)
    if integers is None or integers.bits not in _PACKED:
        raise refuse("auto-round", name, _KNOWN)
    return _integers(integers.bits, integers.group, integers.symmetric)


def _width(bits: int, group_size: int) -> dict[str, Any]:
    """Return auto-round's words for a width; 16 and more are not quantised."""
    if bits >= _FULL["bits"]:
        return dict(_FULL)
    if bits not in _PACKED:
        raise ExportError(
            f"auto-round stores no {bits} bits: allocate again with --choices among "
            f"{', '.join(map(str, _PACKED))}"
        )
    return _integers(bits, group_size, True)


def _integers(bits: int, group: int, symmetric: bool) -> dict[str, Any]:
    """Return auto-round's words for integers with one scale per group; activations stay."""
    return {
        "bits": bits, "group_size": group, "sym": symmetric, "data_type": "int", "act_bits": 16
    }  # fmt: skip
