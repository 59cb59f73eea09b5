"""Turn the alphas of one measurement into one factor per unit, by the maps of ``allocation``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from spectail.allocation.units import make_units, why_no_alpha, with_alphas
from spectail.errors import AllocationError
from spectail.results.records import LayerRecord, Rounding
from spectail.training.parameter_units import Unit
from spectail.training.rules import Rule


@dataclass(frozen=True)
class Factors:
    """One factor per unit that has an alpha, and the reason why others have none."""

    values: Mapping[str, float]
    """The factors by the unit's name."""
    alphas: Mapping[str, float]
    """The alphas of the same units; of several layers the mean."""
    lacking: Mapping[str, str]
    """The reason for each unit without an alpha."""


def factors_of(units: Sequence[Unit], records: Mapping[str, LayerRecord], rule: Rule) -> Factors:
    """Compute the factors of units by a rule; ``records`` hold all their layers by name."""
    joined = [_joined(unit, [records[name] for name in unit.layers], rule) for unit in units]
    try:
        # Raises if no unit at all has an alpha; here that is not an error, for factors then stay.
        known, _, _ = with_alphas(joined, "leave")
    except AllocationError:
        known = ()
        lacking = {layer.name: layer.reason or f"alpha is {layer.alpha:g}" for layer in joined}
    else:
        lacking = {layer.name: why for layer in joined if (why := why_no_alpha(layer))}
    if not known:
        return Factors({}, {}, lacking)
    allocated = make_units(known, rule.level)
    # At a base value of 1 the allocated values are the factors.
    values, _ = rule.scaling().values(allocated, 1.0)
    return Factors(
        values={
            layer.name: float(value)
            for members, value in zip(allocated.members, values, strict=True)
            for layer in members
        },
        alphas={layer.name: layer.alpha for layer in known},
        lacking=lacking,
    )


@dataclass(frozen=True)
class _Joined:
    """A unit in the form of a layer that ``allocation.units`` reads."""

    name: str
    kind: str
    numel: int
    alpha: float
    weight_var: float
    status: str
    reason: str
    comparable: bool
    # What only bits are chosen by, which no rule of training allocates.
    group_range: float = math.nan
    rounding: tuple[Rounding, ...] = ()


def _joined(unit: Unit, records: Sequence[LayerRecord], rule: Rule) -> _Joined:
    """Join the layers of a unit: the mean alpha of those that have one, the numel of all."""
    records = [_with_enough(record, rule.min_eigenvalues) for record in records]
    usable = [
        r for r in records if r.status == "ok" and r.comparable and math.isfinite(r.alpha)
    ] or records
    # Without any alpha, the first layer gives the reason.
    first = usable[0]
    return _Joined(
        name=unit.name,
        kind=first.kind,
        numel=sum(r.numel for r in records),
        alpha=fmean(r.alpha for r in usable),
        weight_var=first.weight_var,
        status=first.status,
        reason=first.reason,
        comparable=first.comparable,
    )


def _with_enough(record: LayerRecord, least: int) -> LayerRecord:
    """Return the record, marked as skipped if it has fewer than ``least`` eigenvalues."""
    if record.status != "ok" or record.n_eigenvalues >= least:
        return record
    few = f"{record.n_eigenvalues} eigenvalues, the rule asks for at least {least}"
    return replace(record, status="skipped", reason=few)
