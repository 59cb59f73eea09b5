"""Torch-Pruning: ratios of channels from ratios of weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from spectail.allocation.allocation import Allocation
from spectail.errors import ExportError
from spectail.export.parts import by_module, check_target, placed
from spectail.export.tool import Tool


@dataclass(frozen=True)
class TorchPruning(Tool):
    """JSON from the name of a module to its ratio of output channels."""

    name: ClassVar[str] = "torch-pruning"
    takes: ClassVar[str] = "sparsity"
    tried: ClassVar[str] = "1.6.1: every layer loses its ratio of channels"

    def text(self, allocation: Allocation) -> str:
        """Return the ratios of channels as JSON: see ``channel_ratios``."""
        return json.dumps(channel_ratios(allocation), indent=1) + "\n"


def channel_ratio(sparsity: float) -> float:
    """Return the ratio c of channels to remove so that this ratio of weights goes.

    Inputs and outputs both lose the ratio c, which leaves (1 - c)^2 of the weights.

    >>> channel_ratio(0.75)
    0.5
    """
    # The inverse of sparsity = 1 - (1 - c)^2.
    return 1 - math.sqrt(1 - sparsity)


def channel_ratios(allocation: Allocation) -> dict[str, float]:
    """Map the full name of every module to its ratio of output channels.

    The ratios hold if the inputs of the module lose as many.

    Raises:
        ExportError: not an allocation of sparsity, or a layer that is no module.

    """
    check_target(allocation, "sparsity", "Torch-Pruning")
    return {
        name: channel_ratio(ratio) for name, ratio in by_module(allocation, "Torch-Pruning").items()
    }


def pruning_ratio_dict(
    ratios: Mapping[str, float], model: Any, saved: Mapping[str, str] | None = None
) -> dict[Any, float]:
    """Build the ``pruning_ratio_dict`` of ``torch_pruning.BasePruner``: modules to ratios.

    Ratios made from a file pair with the modules by name. ``saved`` says what the modules are
    called in the file if the names differ: see ``models.live.saved_names.saved_modules``.
    """
    # Torch-Pruning looks modules up by identity, not by name.
    modules = dict(model.named_modules())
    found, lost = placed(ratios, {name: (saved or {}).get(name, name) for name in modules})
    if lost:
        raise ExportError(f"the model has no module {lost[0]}: give the model that was analysed")
    for name in found:
        if not hasattr(modules[name], "weight"):
            raise ExportError(
                f"the module {name} has no weight: its layers are modules of their own"
            )
    return {modules[name]: ratio for name, ratio in found.items()}
