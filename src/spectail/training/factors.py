"""From the alphas of one measurement to a factor per unit: the maps of ``allocation``, and no formula of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from spectail.allocation.units import make_units, with_alphas
from spectail.errors import AllocationError
from spectail.results.records import LayerRecord
from spectail.training.rules import Rule
from spectail.training.structure import Unit


@dataclass(frozen=True)
class Factors:
    """A factor per unit that has an alpha, and why the others have none."""

    values: Mapping[str, float]
    alphas: Mapping[str, float]
    """Of the same units: the mean over the layers of each."""
    lacking: Mapping[str, str]
    """Units without an alpha, and the reason."""


def factors_of(units: Sequence[Unit], records: Mapping[str, LayerRecord], rule: Rule) -> Factors:
    """Factors of the units that take part in a rule; ``records`` hold every layer of theirs, by name."""
    joined = [_joined(unit, [records[name] for name in unit.layers], rule) for unit in units]
    try:
        known, left_out, _ = with_alphas(joined, "leave")
    except AllocationError:
        known, left_out = (), ()
        lacking = {layer.name: layer.reason or f"alpha is {layer.alpha:g}" for layer in joined}
    else:
        lacking = {layer.name: layer.reason.removeprefix("no alpha: ") for layer in left_out}
    if not known:
        return Factors({}, {}, lacking)
    allocated = make_units(known, rule.level)
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


def _joined(unit: Unit, records: Sequence[LayerRecord], rule: Rule) -> LayerRecord:
    """One record for a unit: the mean alpha of its layers that have one, all their weights."""
    records = [_with_enough(record, rule.min_eigenvalues) for record in records]
    usable = [r for r in records if r.status == "ok" and r.comparable and math.isfinite(r.alpha)] or records
    return replace(usable[0], name=unit.name, alpha=fmean(r.alpha for r in usable), numel=sum(r.numel for r in records))


def _with_enough(record: LayerRecord, least: int) -> LayerRecord:
    """The record, skipped where it has fewer eigenvalues."""
    if record.status != "ok" or record.n_eigenvalues >= least:
        return record
    few = f"{record.n_eigenvalues} eigenvalues, the rule asks for at least {least}"
    return replace(record, status="skipped", reason=few)
