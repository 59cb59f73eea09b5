"""The allocations that ``spectail prune`` knows by name, all for the same sparsity and eps.

Eps is how far the ratios of an allocation go from their mean: from 1 - eps to 1 + eps times it.
"""

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
from spectail.allocation.left_out import Code, LeftOut, Reason
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
"""The allocations by alpha, and the settings that alpha is measured with."""
WITHIN_KIND = ("farms-tail",)
"""Those that compare an alpha only with alphas of the same kind of layer."""

BASELINES = ("uniform", "owl", *SPECS)
NEEDS_TEXT = ("owl",)
"""Those that need calibration text."""
BY_EPS = ("owl", *SPECS)
"""Those whose ratios depend on eps."""


def allocation_named(
    name: str,
    model: nn.Module,
    sparsity: float,
    *,
    eps: float | None = None,
    calibration: Tensor | Sequence[Tensor] | None = None,
    scope: Scope | None = None,
) -> Allocation:
    """Return the allocation of this name, or read one from a file of ``spectail allocate``.

    ``eps`` is explained at ``allocations_by_eps``. ``scope`` holds the layers that get a ratio; a
    file names its layers itself and must have this sparsity.

    Raises:
        PruneError, AllocationError: the name is unknown, the allocation has no eps and one is
            given, or the file has another sparsity or comes with a scope that names layers.

    """
    if eps is not None:
        check_takes_eps(name)
        check_eps(eps)
    # Without an eps these too have their published setting, so they go the same way.
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
    """Measure the model once, and return a function from eps to the allocation.

    By alpha, ratios are mapped linearly from (1 - eps) to (1 + eps) times the sparsity, and then
    moved to meet the budget. OWL gets lambda = eps times the sparsity, so that its ratios span as
    much, 2 eps times the sparsity. An eps of None is the published setting: ``presets.PRUNE_EPS``
    by alpha, ``presets.OWL_LAMBDA`` for OWL. A layer too small for a comparable alpha (the small
    projections of hybrid models) takes the mean of its block, with a note.

    Raises:
        PruneError: the allocation has no eps, or OWL has no text. The function raises it for an
            eps outside [0, 1].

    """
    check_takes_eps(name)
    if name in SPECS:
        return partial(
            _by_alpha,
            # The slow part: it runs once, and any number of eps share its result.
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
    """Raise PruneError if the allocation has no eps."""
    if name not in BY_EPS:
        raise PruneError(f"eps goes with {', '.join(BY_EPS)}, not with {name}")


def check_eps(eps: object) -> float:
    """Return eps as a float; PruneError unless it is a number in [0, 1]."""
    if isinstance(eps, bool) or not isinstance(eps, Real) or not 0 <= float(eps) <= 1:
        raise PruneError(f"eps must be a number from 0 to 1, not {eps!r}")
    return float(eps)


def _by_alpha(
    analysis: Analysis, sparsity: float, standardize_by_kind: bool, scope: Scope, eps: float | None
) -> Allocation:
    # A published value: AlphaPruning uses it for LLaMA-7B.
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
    # Layers that text does not reach were excluded by name; their own reason says more.
    unseen = {name: Reason(Code.UNREACHED, text) for name, text in scope.unseen.items()}
    left_out = (LeftOut(x.name, unseen.get(x.name, x.why)) for x in found.left_out)
    return replace(found, left_out=tuple(left_out))


def _by_outliers(
    model: nn.Module, sparsity: float, shares: dict[str, float], scope: Scope, eps: float | None
) -> Allocation:
    if eps is None:
        return owl_allocation(model, sparsity, shares, lam=presets.OWL_LAMBDA, scope=scope)
    # Ratios span 2 lambda by outliers and 2 eps times the sparsity by alpha: equal spreads make the
    # allocations comparable.
    found = owl_allocation(model, sparsity, shares, lam=check_eps(eps) * sparsity, scope=scope)
    return replace(found, settings={**found.settings, "eps": float(eps)})


def check_takes_globs(name: str, scope: Scope | None) -> None:
    """Raise PruneError for globs together with a file, because a file names its layers itself."""
    if scope and (scope.include or scope.exclude) and name not in BASELINES:
        raise PruneError(
            f"include and exclude go with {', '.join(BASELINES)}: "
            f"the file {name} names its layers itself"
        )


def check_known(name: str) -> None:
    """Raise PruneError for a name that is neither a known allocation nor a file."""
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
    # Allocations meet their budget far more closely than this.
    if abs(allocation.realised - sparsity) > 1e-6:
        raise PruneError(
            f"{name} has a sparsity of {allocation.realised:g}, not the {sparsity:g} asked for"
        )
    return allocation
