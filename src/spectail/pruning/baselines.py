"""Allocations by name: what ``spectail prune`` compares, each with the same sparsity and the same eps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from pathlib import Path

from torch import Tensor, nn

from spectail import presets
from spectail.allocation.allocate import allocate
from spectail.allocation.allocation import Allocation
from spectail.allocation.coverage import LeftOut
from spectail.allocation.maps import Linear
from spectail.allocation.targets import Sparsity
from spectail.analysis import Analysis
from spectail.errors import AllocationError, PruneError
from spectail.measuring.run import analyze
from spectail.pruning.calibration import as_tokens
from spectail.pruning.layers import Scope
from spectail.pruning.owl import outlier_shares, owl_allocation, uniform
from spectail.pruning.reach import scope_of

SPECS = {
    "alphapruning": presets.ALPHAPRUNING,
    "farms": presets.FARMS,
    "farms-tail": presets.FARMS_TAIL,
    "farms-llm": presets.FARMS_LLM,
}
"""Baselines by alpha: how it is measured."""
WITHIN_KIND = ("farms-tail",)
"""Those whose alphas count within their kind of layer."""

BASELINES = ("uniform", "owl", *SPECS)
NEEDS_TEXT = ("owl",)
BY_EPS = ("owl", *SPECS)
"""Those whose ratios go up and down from the mean by an eps."""


def allocation_named(
    name: str,
    model: nn.Module,
    sparsity: float,
    *,
    eps: float | None = None,
    calibration: Tensor | Sequence[Tensor] | None = None,
    scope: Scope | None = None,
) -> Allocation:
    """The allocation of a baseline, or of a file that ``spectail allocate`` wrote; a file must have this sparsity.

    ``eps`` is what ``allocations_by_eps`` says. ``scope`` says which layers are shared among; a
    file names its own.

    Raises:
        PruneError, AllocationError: an unknown name, eps where there is none, a file of another
        sparsity, or a file
            where the scope names layers.

    """
    if eps is not None:
        check_takes_eps(name)
        check_eps(eps)
    if name in BY_EPS:
        return allocations_by_eps(name, model, sparsity, calibration=calibration, scope=scope)(eps)
    check_known(name)
    if name == "uniform":
        return uniform(model, sparsity, scope=scope)
    check_takes_globs(name, scope)
    return _from_file(name, sparsity)


def allocations_by_eps(
    name: str,
    model: nn.Module,
    sparsity: float,
    *,
    calibration: Tensor | Sequence[Tensor] | None = None,
    scope: Scope | None = None,
) -> Callable[[float | None], Allocation]:
    """Measure once, on the model as it is, what a baseline goes by; gives its allocation for any eps.

    Ratios by alpha are mapped linearly from (1 - eps) to (1 + eps) times the sparsity, up to what
    the budget moves. OWL gets lambda = eps times the sparsity, so that its ratios span as much: 2
    eps times the sparsity. None is the published setting, ``presets.PRUNE_EPS`` by alpha and
    ``presets.OWL_LAMBDA`` for OWL. A layer too small for an alpha that can be compared (the small
    projections of hybrids) takes the mean of its block, with a note.

    Raises:
        PruneError: a baseline without eps, OWL without text; when called, an eps outside [0, 1].

    """
    check_takes_eps(name)
    if name in SPECS:
        return partial(
            _by_alpha,
            analyze(model, spec=SPECS[name]),
            sparsity,
            name in WITHIN_KIND,
            scope or Scope(),
        )
    if calibration is None:
        raise PruneError("the allocation owl needs calibration text")
    scope = scope or scope_of(model, as_tokens(calibration, model, "OWL"))
    return partial(
        _by_outliers, model, sparsity, outlier_shares(model, calibration, scope=scope), scope
    )


def check_takes_eps(name: str) -> None:
    """PruneError for an allocation that has no eps."""
    if name not in BY_EPS:
        raise PruneError(f"eps goes with {', '.join(BY_EPS)}, not with {name}")


def check_eps(eps: object) -> float:
    """An eps as a number; PruneError for anything outside [0, 1]."""
    if isinstance(eps, bool) or not isinstance(eps, Real) or not 0 <= float(eps) <= 1:
        raise PruneError(f"eps must be a number from 0 to 1, not {eps!r}")
    return float(eps)


def _by_alpha(
    analysis: Analysis, sparsity: float, standardize_by_kind: bool, scope: Scope, eps: float | None
) -> Allocation:
    width = presets.PRUNE_EPS if eps is None else check_eps(eps)
    rule = Sparsity(map=Linear(1 - width, 1 + width), standardize_by_kind=standardize_by_kind)
    exclude = (*scope.exclude, *scope.unseen)
    found = allocate(
        analysis,
        target=rule,
        budget=sparsity,
        include=scope.include,
        exclude=exclude,
        missing="mean",
    )
    left_out = (
        LeftOut(layer.name, scope.unseen.get(layer.name, layer.reason)) for layer in found.left_out
    )
    return replace(found, left_out=tuple(left_out))


def _by_outliers(
    model: nn.Module, sparsity: float, shares: dict[str, float], scope: Scope, eps: float | None
) -> Allocation:
    if eps is None:
        return owl_allocation(model, sparsity, shares, lam=presets.OWL_LAMBDA, scope=scope)
    found = owl_allocation(model, sparsity, shares, lam=check_eps(eps) * sparsity, scope=scope)
    return replace(found, settings={**found.settings, "eps": float(eps)})


def check_takes_globs(name: str, scope: Scope | None) -> None:
    """PruneError for globs beside a file, which says itself which layers it is about."""
    if scope and (scope.include or scope.exclude) and name not in BASELINES:
        raise PruneError(
            f"include and exclude go with {', '.join(BASELINES)}: the file {name} names its layers itself"
        )


def check_known(name: str) -> None:
    """PruneError for what is neither a baseline nor a file."""
    if name not in BASELINES and not Path(name).exists():
        raise PruneError(
            f"allocation must be one of {', '.join(BASELINES)} or a file, not {name!r}"
        )


def _from_file(name: str, sparsity: float) -> Allocation:
    allocation = Allocation.load(name)
    if allocation.target != "sparsity":
        raise AllocationError(
            f"{name} allocates {allocation.target}: expected an allocation of sparsity"
        )
    if abs(allocation.realised - sparsity) > 1e-6:
        raise PruneError(
            f"{name} has a sparsity of {allocation.realised:g}, not the {sparsity:g} asked for"
        )
    return allocation
