"""spectail: heavy tails of weight spectra, free of the bias of a matrix's shape, turned into per-layer decisions.

>>> import spectail as st
>>> st.presets.FARMS.cutoff
Median()
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectail import presets
    from spectail.allocation import maps, targets
    from spectail.allocation.allocate import allocate
    from spectail.allocation.allocation import Allocation
    from spectail.analysis import Analysis, compare
    from spectail.core.measure import tail_fit
    from spectail.core.spec import Spec
    from spectail.errors import (
        AllocationError,
        PruneError,
        RunError,
        SourceError,
        SpecError,
        SpectailError,
    )
    from spectail.evaluation import evaluate_tasks, perplexity
    from spectail.measuring.run import analyze
    from spectail.models.live.language import open_language_model
    from spectail.pruning.prune import prune
    from spectail.training.balancer import Balancer
    from spectail.training.rules import LLR, AlphaDecay, TBSigmoid, TempBalance

_WHERE = {
    "Allocation": "spectail.allocation.allocation",
    "AllocationError": "spectail.errors",
    "AlphaDecay": "spectail.training.rules",
    "Analysis": "spectail.analysis",
    "Balancer": "spectail.training.balancer",
    "LLR": "spectail.training.rules",
    "PruneError": "spectail.errors",
    "RunError": "spectail.errors",
    "SourceError": "spectail.errors",
    "Spec": "spectail.core.spec",
    "SpecError": "spectail.errors",
    "SpectailError": "spectail.errors",
    "TBSigmoid": "spectail.training.rules",
    "TempBalance": "spectail.training.rules",
    "allocate": "spectail.allocation.allocate",
    "analyze": "spectail.measuring.run",
    "compare": "spectail.analysis",
    "evaluate_tasks": "spectail.evaluation",
    "maps": "spectail.allocation.maps",
    "open_language_model": "spectail.models.live.language",
    "perplexity": "spectail.evaluation",
    "presets": "spectail.presets",
    "prune": "spectail.pruning.prune",
    "tail_fit": "spectail.core.measure",
    "targets": "spectail.allocation.targets",
}
"""The public names and the modules that hold them, imported on first use: results are read without
torch."""

_MODULES = ("maps", "presets", "targets")

__all__ = [
    "LLR",
    "Allocation",
    "AllocationError",
    "AlphaDecay",
    "Analysis",
    "Balancer",
    "PruneError",
    "RunError",
    "SourceError",
    "Spec",
    "SpecError",
    "SpectailError",
    "TBSigmoid",
    "TempBalance",
    "allocate",
    "analyze",
    "compare",
    "evaluate_tasks",
    "maps",
    "open_language_model",
    "perplexity",
    "presets",
    "prune",
    "tail_fit",
    "targets",
]

__version__ = metadata.version("spectail")


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'spectail' has no attribute {name!r}")
    module = import_module(_WHERE[name])
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
