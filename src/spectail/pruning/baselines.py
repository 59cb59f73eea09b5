"""Allocations by name: what ``spectail prune`` compares, each with the same sparsity and the same eps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from spectail import presets
from spectail.allocation.allocate import allocate
from spectail.allocation.allocation import Allocation
from spectail.allocation.maps import Linear
from spectail.allocation.targets import Sparsity
from spectail.errors import AllocationError, PruneError
from spectail.pruning.owl import owl, uniform
from spectail.runner import analyze

SPECS = {"alphapruning": presets.ALPHAPRUNING, "farms": presets.FARMS, "farms-llm": presets.FARMS_LLM}
"""Baselines by alpha: how it is measured."""

BASELINES = ("uniform", "owl", *SPECS)
NEEDS_TEXT = ("owl",)


def allocation_named(
    name: str,
    model: nn.Module,
    sparsity: float,
    *,
    eps: float | None = None,
    calibration: Tensor | Sequence[Tensor] | None = None,
) -> Allocation:
    """The allocation of a baseline, or of a file that ``spectail allocate`` wrote.

    ``eps`` is how far ratios go from the mean, 1 +- eps by alpha per block (``presets.PRUNE_EPS`` where it is None);
    OWL takes its lambda from ``presets``. A file must have the sparsity that is asked for.

    Raises:
        PruneError, AllocationError: an unknown name, eps where there is none, a file of another sparsity.

    """
    if eps is not None and name not in SPECS:
        raise PruneError(f"eps goes with {', '.join(SPECS)}, not with {name}")
    if name == "uniform":
        return uniform(model, sparsity)
    if name == "owl":
        if calibration is None:
            raise PruneError("the allocation owl needs calibration text")
        return owl(model, sparsity, calibration=calibration)
    if name in SPECS:
        width = presets.PRUNE_EPS if eps is None else eps
        rule = Sparsity(map=Linear(1 - width, 1 + width))
        return allocate(analyze(model, spec=SPECS[name]), target=rule, budget=sparsity)
    return _from_file(name, sparsity)


def _from_file(name: str, sparsity: float) -> Allocation:
    if not Path(name).exists():
        raise PruneError(f"allocation must be one of {', '.join(BASELINES)} or a file, not {name!r}")
    allocation = Allocation.load(name)
    if allocation.target != "sparsity":
        raise AllocationError(f"{name} allocates {allocation.target}: expected an allocation of sparsity")
    if abs(allocation.realised - sparsity) > 1e-6:
        raise PruneError(f"{name} has a sparsity of {allocation.realised:g}, not the {sparsity:g} asked for")
    return allocation
