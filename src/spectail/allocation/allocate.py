"""allocate: from the alphas of an analysis to one value per layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from numbers import Real

from spectail.allocation.allocation import Allocation, LayerValue
from spectail.allocation.coverage import cover
from spectail.allocation.maps import Map
from spectail.allocation.targets import Sparsity, Target, as_target, settings
from spectail.allocation.units import make_units, standardized_by_kind, with_alphas
from spectail.errors import AllocationError
from spectail.results.records import LayerRecord, Results


def allocate(
    analysis: Results,
    *,
    target: Target | str,
    budget: float,
    map: Map | str | None = None,
    level: str | None = None,
    standardize_by_kind: bool | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    missing: str = "error",
) -> Allocation:
    """Give every layer that takes part a value, by its alpha or its block's.

    ``target`` is ``sparsity``, ``bits``, ``lr`` or ``weight-decay``, or a type of
    ``spectail.targets`` with further options. ``budget`` is the mean sparsity or bits weighted by
    number of weights, or the base value of a rate. ``map`` (``linear:0.3``, ``sqrt``, ``log2``,
    ``step:0.5:1.5``, ``sigmoid:1``, a name of ``presets.MAPS``, or a type of ``spectail.maps``)
    says how alpha becomes a factor; ``level`` whether a ``block`` or a ``layer`` gets a value;
    ``standardize_by_kind``, for sparsity, that alphas count within their kind of layer
    (``units.standardized_by_kind``).

    Embeddings, head, norms and routers stay out, for sparsity and bits also what lies in no block;
    ``include`` globs add them, ``exclude`` globs leave layers out. A layer without a comparable
    alpha is an error, or takes the mean of its block, else of all (``missing="mean"``), or is left
    out (``missing="leave"``).

    Raises AllocationError with one clear line.
    """
    if not isinstance(analysis, Results):
        raise AllocationError(
            f"expected an analysis, as st.analyze or st.Analysis.load gives it, not {analysis!r}"
        )
    rule = as_target(target, map=map, level=level, standardize_by_kind=standardize_by_kind)
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise AllocationError(f"the budget must be a number, not {budget!r}")
    coverage = cover(
        analysis.layers, inside_blocks=rule.inside_blocks, include=include, exclude=exclude
    )
    layers, without_alpha, remarks = with_alphas(coverage.layers, missing)
    if isinstance(rule, Sparsity) and rule.standardize_by_kind:
        layers = standardized_by_kind(layers)
    units = make_units(layers, rule.level)
    values, deviations = rule.values(units, float(budget))
    given = {
        layer.name: LayerValue(layer.name, float(value), unit, float(alpha), layer.numel)
        for unit, members, value, alpha in zip(
            units.names, units.members, values, units.alpha, strict=True
        )
        for layer in members
    }
    return Allocation(
        target=rule.name,
        budget=float(budget),
        settings=settings(rule),
        shares=tuple(given[layer.name] for layer in layers),
        left_out=(*coverage.left_out, *without_alpha),
        deviations=deviations,
        notes=(*remarks, *_mixed_windows(layers)),
        source=analysis.run.source,
        fingerprint=analysis.run.fingerprint,
        spec=analysis.run.spec.to_dict(),
    )


def _mixed_windows(layers: Sequence[LayerRecord]) -> tuple[str, ...]:
    """A remark where alphas were measured in windows of several shapes (whole matrices count as windows)."""
    measured = [layer for layer in layers if layer.status == "ok" and layer.comparable]
    shapes = Counter(tuple(sorted((layer.window_rows, layer.window_cols))) for layer in measured)
    if len(shapes) < 2:
        return ()
    shown = ", ".join(f"{rows} x {cols} ({count})" for (rows, cols), count in shapes.most_common(4))
    more = ", ..." if len(shapes) > 4 else ""
    return (
        f"Alphas come from windows of {len(shapes)} shapes ({shown}{more}): part of their differences is shape. "
        "One common window removes it.",
    )
