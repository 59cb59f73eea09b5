"""spectail: heavy tails of weight spectra, compared fairly across shapes, for per-layer decisions.

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
    from spectail.allocation.allocation import Allocation, LayerValue
    from spectail.allocation.left_out import LeftOut
    from spectail.allocation.sensitivities import LayerSensitivity, Sensitivities
    from spectail.analysis import Analysis, compare
    from spectail.core import cutoffs
    from spectail.core.measure import tail_fit
    from spectail.core.spec import Spec
    from spectail.core.tail_fit import TailFit
    from spectail.errors import (
        AllocationError,
        EvaluationError,
        ExportError,
        PruneError,
        RunError,
        SourceChangedError,
        SourceError,
        SourceUnreachableError,
        SpecError,
        SpectailError,
        TrainingError,
    )
    from spectail.evaluation import evaluate_tasks, perplexity
    from spectail.evaluation.perplexity import Perplexity
    from spectail.measuring.describe import Description, describe
    from spectail.measuring.run import analyze
    from spectail.measuring.shards import merge
    from spectail.models.live.language import module_names, open_language_model
    from spectail.models.open import open_source
    from spectail.pruning import methods
    from spectail.pruning.calibration import calibration_tokens
    from spectail.pruning.prune import PruningInterrupted, prune
    from spectail.pruning.report import Note, PrunedLayer, PruneReport
    from spectail.results.compare import Comparison
    from spectail.results.depth import DepthCorrelations, RankCorrelation
    from spectail.results.records import LayerRecord, Results, RunInfo
    from spectail.results.summary import Summary
    from spectail.results.trajectory import Trajectory
    from spectail.sensitivity.measure import sensitivities
    from spectail.training.balancer import Balancer
    from spectail.training.history import History
    from spectail.training.rules import LLR, AlphaDecay, TBSigmoid, TempBalance

_WHERE = {
    "Allocation": "spectail.allocation.allocation",
    "AllocationError": "spectail.errors",
    "AlphaDecay": "spectail.training.rules",
    "Analysis": "spectail.analysis",
    "Balancer": "spectail.training.balancer",
    "Comparison": "spectail.results.compare",
    "Description": "spectail.measuring.describe",
    "DepthCorrelations": "spectail.results.depth",
    "EvaluationError": "spectail.errors",
    "ExportError": "spectail.errors",
    "History": "spectail.training.history",
    "LLR": "spectail.training.rules",
    "LayerRecord": "spectail.results.records",
    "LayerSensitivity": "spectail.allocation.sensitivities",
    "LayerValue": "spectail.allocation.allocation",
    "LeftOut": "spectail.allocation.left_out",
    "Note": "spectail.pruning.report",
    "Perplexity": "spectail.evaluation.perplexity",
    "PruneError": "spectail.errors",
    "PruneReport": "spectail.pruning.report",
    "PrunedLayer": "spectail.pruning.report",
    "PruningInterrupted": "spectail.pruning.prune",
    "RankCorrelation": "spectail.results.depth",
    "Results": "spectail.results.records",
    "RunError": "spectail.errors",
    "RunInfo": "spectail.results.records",
    "Sensitivities": "spectail.allocation.sensitivities",
    "SourceChangedError": "spectail.errors",
    "SourceUnreachableError": "spectail.errors",
    "SourceError": "spectail.errors",
    "Spec": "spectail.core.spec",
    "SpecError": "spectail.errors",
    "SpectailError": "spectail.errors",
    "Summary": "spectail.results.summary",
    "TBSigmoid": "spectail.training.rules",
    "TailFit": "spectail.core.tail_fit",
    "TempBalance": "spectail.training.rules",
    "TrainingError": "spectail.errors",
    "Trajectory": "spectail.results.trajectory",
    "allocate": "spectail.allocation.allocate",
    "analyze": "spectail.measuring.run",
    "calibration_tokens": "spectail.pruning.calibration",
    "compare": "spectail.analysis",
    "describe": "spectail.measuring.describe",
    "cutoffs": "spectail.core.cutoffs",
    "evaluate_tasks": "spectail.evaluation",
    "maps": "spectail.allocation.maps",
    "merge": "spectail.measuring.shards",
    "methods": "spectail.pruning.methods",
    "module_names": "spectail.models.live.language",
    "open_language_model": "spectail.models.live.language",
    "open_source": "spectail.models.open",
    "perplexity": "spectail.evaluation",
    "presets": "spectail.presets",
    "prune": "spectail.pruning.prune",
    "sensitivities": "spectail.sensitivity.measure",
    "tail_fit": "spectail.core.measure",
    "targets": "spectail.allocation.targets",
}
"""The public names and the modules that hold them, imported on first use: results are read without
torch."""

_MODULES = ("cutoffs", "maps", "methods", "presets", "targets")

__all__ = [
    "LLR",
    "Allocation",
    "AllocationError",
    "AlphaDecay",
    "Analysis",
    "Balancer",
    "Comparison",
    "DepthCorrelations",
    "Description",
    "EvaluationError",
    "ExportError",
    "History",
    "LayerRecord",
    "LayerSensitivity",
    "LayerValue",
    "LeftOut",
    "Note",
    "Perplexity",
    "PruneError",
    "PruneReport",
    "PrunedLayer",
    "PruningInterrupted",
    "RankCorrelation",
    "Results",
    "RunError",
    "RunInfo",
    "Sensitivities",
    "SourceChangedError",
    "SourceError",
    "SourceUnreachableError",
    "Spec",
    "SpecError",
    "SpectailError",
    "Summary",
    "TBSigmoid",
    "TailFit",
    "TempBalance",
    "TrainingError",
    "Trajectory",
    "allocate",
    "analyze",
    "calibration_tokens",
    "compare",
    "cutoffs",
    "describe",
    "evaluate_tasks",
    "maps",
    "merge",
    "methods",
    "module_names",
    "open_language_model",
    "open_source",
    "perplexity",
    "presets",
    "prune",
    "sensitivities",
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
