"""torchao: a width or format of weights per module, as ``FqnToConfig`` takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from spectail.allocation.allocation import Allocation
from spectail.errors import ExportError
from spectail.export.formats import Integers, has_formats, integers_of, refuse
from spectail.export.llm_compressor import check_group_size
from spectail.export.parts import (
    Modules,
    by_module,
    check_target,
    grouped_formats,
    module_name,
    placed,
    shown,
)
from spectail.export.tool import Tool

_PROBLEM = "torchao addresses modules by name, and these layers are none"
WIDEST = 8
"""Bits of torchao's widest integer weight."""


@dataclass(frozen=True)
class TorchAO(Tool):
    """JSON with the width of every module, which ``fqn_to_config`` turns into torchao's type."""

    name: ClassVar[str] = "torchao"
    takes: ClassVar[str] = "bits, up to 8"
    tried: ClassVar[str] = (
        "0.18.0: `quantize_` gives every module its width or format, also after saving and loading"
    )

    group_size: int = 32
    """Weights along a row that share a scale, for widths."""

    @classmethod
    def options_for(cls, allocation: Allocation) -> list[str]:
        """Return the names of its options; formats have groups of their own."""
        return [] if has_formats(allocation) else ["group_size"]

    def text(self, allocation: Allocation) -> str:
        """Return the widths or formats as JSON: see ``widths``."""
        return json.dumps(widths(allocation, group_size=self.group_size), indent=1) + "\n"


def widths(allocation: Allocation, *, group_size: int = 32) -> dict[str, Any]:
    """Return plain JSON values that :func:`fqn_to_config` reads.

    They hold the full name of every module with its bits, and the size of a group of weights; or
    with its format.

    Raises:
        ExportError: not an allocation of bits, a width above 8, a format that torchao does not
            have, or a layer that is no module.

    """
    check_target(allocation, "bits", "torchao")
    check_group_size(group_size)
    if has_formats(allocation):
        formats = grouped_formats(allocation, module_name, _PROBLEM)
        for name in set(formats.values()):
            if integers_of(name) is None and name not in ("fp8", "nvfp4"):
                raise refuse("torchao", name, "int2 to int8, w4a16, w8a16, fp8, nvfp4")
        return {"formats": formats}
    found = {name: int(width) for name, width in by_module(allocation, "torchao").items()}
    # torchao has int1 to int8; refusing here saves an error deep inside of quantize_.
    wide = [name for name, width in found.items() if width > WIDEST]
    if wide:
        raise ExportError(
            f"torchao's integer weights have at most {WIDEST} bits, "
            f"but {wide[0]} has {found[wide[0]]}"
        )
    return {"group_size": group_size, "bits": found}


def fqn_to_config(data: Mapping[str, Any], modules: Modules | None = None) -> Any:
    """Build torchao's ``FqnToConfig``, for ``quantize_`` or transformers' ``TorchAoConfig``.

    Every named module gets its format, or symmetric integers of its width with one scale per group;
    other modules stay at full precision. torchao silently ignores a name that is no module, so give
    the names of the model's ``modules``: bits that were allocated from a file then pair with them
    by name, and a name that is none of them is refused.
    """
    # Widths are numbers and formats are names; one of the two is there.
    chosen: dict[str, Any] = data.get("formats") or data["bits"]
    if modules is not None:
        chosen, lost = placed(chosen, modules)
        if lost:
            raise ExportError(
                f"the model has no module {shown(lost)}: "
                "give the names of the model that was analysed"
            )
    # Imported here: torchao is optional, and nothing else of the exports needs torch.
    try:
        from torchao.quantization import FqnToConfig
    except ImportError as error:
        raise ExportError(
            f"this needs torchao with FqnToConfig: pip install torchao ({error})"
        ) from None
    # One configuration per width or format, shared by its modules.
    configs = {own: _config(own, data.get("group_size", 0)) for own in set(chosen.values())}
    return FqnToConfig({name: configs[own] for name, own in chosen.items()})


def _config(chosen: int | str, group_size: int) -> Any:
    """Return torchao's configuration of a width or a format."""
    import torch
    from torchao.quantization import Float8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from torchao.quantization.quant_primitives import MappingType

    if chosen == "fp8":
        return Float8WeightOnlyConfig()
    if chosen == "nvfp4":
        from torchao.prototype.mx_formats import NVFP4WeightOnlyConfig

        return NVFP4WeightOnlyConfig()
    width = isinstance(chosen, int)
    integers = Integers(int(chosen), group_size, True) if width else integers_of(str(chosen))
    if integers is None:
        raise ExportError(f"torchao has no format {chosen!r}")
    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{integers.bits}"),
        granularity=PerGroup(integers.group),
        mapping_type=MappingType.SYMMETRIC if integers.symmetric else MappingType.ASYMMETRIC,
    )
