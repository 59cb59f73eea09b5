"""torchao: integer weights of a width per module, as ``FqnToConfig`` takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from spectail.allocation.allocation import Allocation
from spectail.errors import ExportError
from spectail.export.llm_compressor import check_group_size
from spectail.export.parts import Modules, by_module, check_target, placed, shown
from spectail.export.tool import Tool

WIDEST = 8
"""Bits of torchao's widest integer weight."""


@dataclass(frozen=True)
class TorchAO(Tool):
    """JSON with the width of every module, which ``fqn_to_config`` turns into torchao's type."""

    name: ClassVar[str] = "torchao"
    takes: ClassVar[str] = "bits, up to 8"
    tried: ClassVar[str] = "0.18.0: `quantize_` gives every module its width"

    group_size: int = 32
    """Weights along a row that share a scale."""

    def text(self, allocation: Allocation) -> str:
        """Return the widths as JSON: see ``widths``."""
        return json.dumps(widths(allocation, group_size=self.group_size), indent=1) + "\n"


def widths(allocation: Allocation, *, group_size: int = 32) -> dict[str, Any]:
    """Return plain JSON values that :func:`fqn_to_config` reads.

    They hold the full name of every module with its bits, and the size of a group of weights.

    Raises:
        ExportError: not an allocation of bits, a width above 8, or a layer that is no module.

    """
    check_target(allocation, "bits", "torchao")
    check_group_size(group_size)
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

    Every named module gets symmetric integers with one scale per group; other modules stay at full
    precision. torchao silently ignores a name that is no module, so give the names of the model's
    ``modules``: bits that were allocated from a file then pair with them by name, and a name that
    is none of them is refused.
    """
    bits = data["bits"]
    if modules is not None:
        bits, lost = placed(bits, modules)
        if lost:
            raise ExportError(
                f"the model has no module {shown(lost)}: "
                "give the names of the model that was analysed"
            )
    # Imported here: torchao is optional, and nothing else of the exports needs torch.
    try:
        import torch
        from torchao.quantization import FqnToConfig, IntxWeightOnlyConfig, PerGroup
    except ImportError as error:
        raise ExportError(
            f"this needs torchao with FqnToConfig: pip install torchao ({error})"
        ) from None
    # One configuration per width, shared by its modules.
    by_width = {
        width: IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{width}"), granularity=PerGroup(data["group_size"])
        )
        for width in set(bits.values())
    }
    return FqnToConfig({name: by_width[width] for name, width in bits.items()})
