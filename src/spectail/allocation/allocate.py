"""allocate: from the alphas of an analysis to one value per layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real

from spectail.allocation.allocation import Allocation, LayerValue
from spectail.allocation.coverage import cover
from spectail.allocation.left_out import LeftOut
from spectail.allocation.maps import Map
from spectail.allocation.targets import Target, as_target
from spectail.allocation.units import check_missing, make_units, with_alphas
from spectail.errors import AllocationError
from spectail.models.naming.select import KindFilter
from spectail.results.records import LayerRecord, Results


def allocate(
    analysis: Results,
    *,
    target: Target | str,
    budget: float,
    map: Map | str | None = None,
    level: str | None = None,
    standardize_by_kind: bool | None = None,
    by: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: str | Sequence[str] = (),
    types: str | Sequence[str] = (),
    missing: str = "error",
    sensitivities: Mapping[str, float] | None = None,
) -> Allocation:
    """Give every layer that takes part a value by its alpha, or by the mean alpha of its block.

    ``target`` is ``sparsity``, ``bits``, ``lr`` or ``weight-decay``, or a type of
    ``spectail.targets`` with further options. ``budget`` is the mean sparsity or bits weighted by
    number of weights, or the base value of a rate. ``map`` says how alpha becomes a factor
    (``linear:0.3``, ``sqrt``, ``log2``, ``step:0.5:1.5``, ``sigmoid:1``, a name of
    ``presets.MAPS``, or a type of ``spectail.maps``). ``level`` says whether each ``block`` or each
    ``layer`` gets a value. ``standardize_by_kind``, for sparsity, compares alphas within each kind
    of layer (``units.standardized_by_kind``). ``by``, for sparsity, says what decides in place of
    alpha (``allocation.scores``): ``depth:falling``, ``alpha+variance``, ``ends+alpha``.
    ``sensitivities``, for bits, weigh the error of each layer (``st.sensitivities``).

    Embeddings, head, norms and routers stay out; for sparsity and bits, so does everything that
    lies in no block, unless the model has no blocks at all. ``include`` globs add layers,
    ``exclude`` globs leave layers out. ``kinds`` (``"q,k"``) and ``types`` (``"conv"``) keep layers
    of these only, embeddings and heads too if they are named. A layer without a comparable alpha is
    an error, or takes the mean of its block, else of all (``missing="mean"``), or is left out
    (``missing="leave"``).

    Raises:
        AllocationError: in one line, what cannot be allocated and what to do.

    """
    _check(analysis, budget)
    check_missing(missing)
    rule = as_target(
        target,
        map=map,
        level=level,
        standardize_by_kind=standardize_by_kind,
        by=by,
        sensitivities=sensitivities,
    )
    coverage = cover(
        analysis.layers,
        inside_blocks=rule.inside_blocks,
        include=include,
        exclude=exclude,
        of=KindFilter.of(kinds, types),
    )
    layers, without_alpha, remarks = _ready(coverage.layers, rule, missing)
    shares, deviations = _shares(
        layers, rule, float(budget), model=[layer.name for layer in analysis.layers]
    )
    return Allocation(
        target=rule.name,
        budget=float(budget),
        settings=rule.settings(),
        shares=shares,
        left_out=(*coverage.left_out, *without_alpha),
        deviations=deviations,
        notes=(*coverage.notes, *remarks),
        source=analysis.run.source,
        fingerprint=analysis.run.fingerprint,
        spec=analysis.run.spec.to_dict(),
    )


def _check(analysis: object, budget: object) -> None:
    """Refuse what is no analysis, and a budget that is no number."""
    if not isinstance(analysis, Results):
        raise AllocationError(
            f"expected an analysis, as st.analyze or st.Analysis.load gives it, not {analysis!r}"
        )
    # True is an instance of int, and a budget of True is surely a mistake.
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise AllocationError(f"the budget must be a number, not {budget!r}")


def _ready(
    layers: Sequence[LayerRecord], rule: Target, missing: str
) -> tuple[Sequence[LayerRecord], tuple[LeftOut, ...], tuple[str, ...]]:
    """Return the layers that get a value, those left out for lack of an alpha, and remarks."""
    if not rule.needs_alpha:
        return layers, (), ()
    found, without_alpha, remarks = with_alphas(layers, missing)
    return found, without_alpha, (*remarks, *_mixed_windows(found))


def _shares(
    layers: Sequence[LayerRecord], rule: Target, budget: float, *, model: Sequence[str]
) -> tuple[tuple[LayerValue, ...], tuple[str, ...]]:
    """Return the value of every layer, in the model's order, and the rule's deviations.

    ``model`` holds the names of all layers of the model.
    """
    units = make_units(rule.prepared(layers), rule.level, model=model)
    values, deviations = rule.values(units, budget)
    formats = rule.formats(units, values)

    def of_units() -> Iterator[LayerValue]:
        """Give every layer the value of its unit."""
        for unit, members, value, alpha, chosen in zip(
            units.names, units.members, values, units.alpha, formats, strict=True
        ):
            found = float(alpha) if math.isfinite(alpha) else None
            for layer in members:
                yield LayerValue(layer.name, float(value), unit, found, layer.numel, chosen)

    # Units gather the layers of a block from wherever they stand; the result keeps their own order.
    given = {share.name: share for share in of_units()}
    return tuple(given[layer.name] for layer in layers), deviations


def _mixed_windows(layers: Sequence[LayerRecord]) -> tuple[str, ...]:
    """Remark on alphas that come from windows of several shapes; a whole matrix is a window."""
    measured = [layer for layer in layers if layer.status == "ok" and layer.comparable]
    # A window and its transpose have the same eigenvalues, hence the sorted sides.
    shapes = Counter(tuple(sorted((layer.window_rows, layer.window_cols))) for layer in measured)
    if len(shapes) < 2:
        return ()
    shown = ", ".join(f"{rows} x {cols} ({count})" for (rows, cols), count in shapes.most_common(4))
    more = ", ..." if len(shapes) > 4 else ""
    return (
        f"Alphas come from windows of {len(shapes)} shapes ({shown}{more}): "
        "part of their differences is shape. One common window removes it.",
    )
