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
    from spectail.analysis import Analysis, compare
    from spectail.core.farms import TailFit, tail_fit
    from spectail.core.spec import Spec
    from spectail.errors import RunError, SourceError, SpecError, SpectailError
    from spectail.records import LayerRecord
    from spectail.report.compare import Comparison
    from spectail.runner import analyze

_WHERE = {
    "Analysis": "spectail.analysis",
    "Comparison": "spectail.report.compare",
    "LayerRecord": "spectail.records",
    "RunError": "spectail.errors",
    "SourceError": "spectail.errors",
    "Spec": "spectail.core.spec",
    "SpecError": "spectail.errors",
    "SpectailError": "spectail.errors",
    "TailFit": "spectail.core.farms",
    "analyze": "spectail.runner",
    "compare": "spectail.analysis",
    "presets": "spectail.presets",
    "tail_fit": "spectail.core.farms",
}
"""The public names and the modules that hold them, imported on first use: results are read without torch."""

__all__ = [
    "Analysis",
    "Comparison",
    "LayerRecord",
    "RunError",
    "SourceError",
    "Spec",
    "SpecError",
    "SpectailError",
    "TailFit",
    "analyze",
    "compare",
    "presets",
    "tail_fit",
]

__version__ = metadata.version("spectail")


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'spectail' has no attribute {name!r}")
    module = import_module(_WHERE[name])
    value = module if name == "presets" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
