"""Torch-Pruning: ratios of channels from ratios of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from spectail.allocation.allocation import Allocation
from spectail.errors import ExportError
from spectail.export.parts import by_module, check_target, placed


def channel_ratio(sparsity: float) -> float:
    """The ratio c of channels whose removal on both sides removes this ratio of weights: 1 - (1 - c)^2.

    >>> channel_ratio(0.75)
    0.5
    """
    return 1 - math.sqrt(1 - sparsity)


def channel_ratios(allocation: Allocation) -> dict[str, float]:
    """Full name of a module to its ratio of output channels, for inputs that are cut by as much.

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
    """The ``pruning_ratio_dict`` of ``torch_pruning.BasePruner``, whose keys are the model's modules.

    Ratios made from a file pair with the modules by name. ``saved`` says what modules are called in
    the file, where they differ: see ``models.live.saved_names.saved_modules``.
    """
    modules = dict(model.named_modules())
    found, lost = placed(ratios, {name: (saved or {}).get(name, name) for name in modules})
    if lost:
        raise ExportError(f"the model has no module {lost[0]}: give the model that was analysed")
    return {modules[name]: ratio for name, ratio in found.items()}
