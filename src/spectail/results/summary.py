"""A run in a few numbers: means over its layers, how far they spread, and how many were measured.

The metrics are those that WeightWatcher's ``get_summary`` averages. No torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spectail.basics.json_values import plain
from spectail.basics.texts import first_names, plural
from spectail.results.records import LayerRecord, Results

METRICS = (
    "alpha",
    "alpha_weighted",
    "log_norm",
    "log_spectral_norm",
    "log_alpha_norm",
    "stable_rank",
)
"""The columns that a summary averages."""
STATUSES = ("ok", "skipped", "failed")
_SHOWN = 3
"""Failed layers that are listed by name."""


@dataclass(frozen=True)
class Statistics:
    """One metric over the layers of a run that have it."""

    n: int
    mean: float
    """Every layer counts the same, as in WeightWatcher's summary."""
    weighted_mean: float
    """Every weight counts the same: layers count by their number of weights."""
    sd: float
    """Standard deviation over the layers; NaN for a single one."""
    least: float
    greatest: float


@dataclass(frozen=True)
class Summary:
    """A run in a few numbers. ``str()`` of it is a text of a few lines."""

    source: str
    counts: dict[str, int]
    """Number of layers that are ok, skipped and failed."""
    numel: int
    """Number of weights in the layers that are ok."""
    n_vectors: int
    """Number of parameters with fewer than two dimensions, which have no row."""
    not_comparable: int
    """Number of layers whose alpha was measured in another window; the means leave them out."""
    statistics: dict[str, Statistics]
    """By metric, for those of METRICS that were measured."""
    stands_out: tuple[str, ...] = ()
    """Sentences on what is unlike the rest."""
    failed: tuple[str, ...] = ()
    """Names of the layers that failed."""

    def __getitem__(self, metric: str) -> Statistics:
        return self.statistics[metric]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with None for numbers that are not finite."""
        found: dict[str, Any] = plain(asdict(self))
        return found

    def __str__(self) -> str:
        """Write counts, a table of the metrics and what stands out."""
        return "\n".join([self._counted(), *self._rows(), *self.stands_out, *self._failures()])

    def _counted(self) -> str:
        shown = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count)
        text = f"{self.source}: {shown or 'no layers'}; {self.numel:,} weights measured"
        if self.not_comparable:
            text += f"; {plural(self.not_comparable, 'layer')} not comparable, left out below"
        return text

    def _rows(self) -> list[str]:
        """Write one line for each metric; columns are aligned."""
        if not self.statistics:
            return []
        head = ("", "mean", "by weights", "spread", "least", "greatest")
        body = [
            (name, *(f"{x:.3f}" for x in (s.mean, s.weighted_mean, s.sd, s.least, s.greatest)))
            for name, s in self.statistics.items()
        ]
        width = max(len(row[0]) for row in body)
        return [
            f"{row[0]:<{width}}" + "".join(f"{cell.replace('nan', '-'):>12}" for cell in row[1:])
            for row in (head, *body)
        ]

    def _failures(self) -> list[str]:
        return [f"failed: {first_names(list(self.failed), _SHOWN)}"] if self.failed else []


def summarize(results: Results, stands_out: Sequence[str] = ()) -> Summary:
    """Summarize a run. Layers that are not ok, or not comparable, count and enter no mean."""
    measured = [layer for layer in results.layers if layer.status == "ok"]
    compared = [layer for layer in measured if layer.comparable]
    counts = Counter(layer.status for layer in results.layers)
    found = {metric: _statistics(compared, metric) for metric in METRICS}
    return Summary(
        source=results.run.source,
        counts={status: counts[status] for status in STATUSES},
        numel=sum(layer.numel for layer in measured),
        n_vectors=results.run.n_vectors,
        not_comparable=len(measured) - len(compared),
        statistics={metric: s for metric, s in found.items() if s is not None},
        stands_out=tuple(stands_out),
        failed=tuple(layer.name for layer in results.layers if layer.status == "failed"),
    )


def _statistics(layers: Sequence[LayerRecord], metric: str) -> Statistics | None:
    """Return one metric over the layers that have it; None if no layer has."""
    pairs = [
        (value, layer.numel) for layer in layers if math.isfinite(value := getattr(layer, metric))
    ]
    if not pairs:
        return None
    values, numel = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    return Statistics(
        n=values.size,
        mean=float(values.mean()),
        weighted_mean=float(np.average(values, weights=numel)),
        sd=float(values.std(ddof=1)) if values.size > 1 else math.nan,
        least=float(values.min()),
        greatest=float(values.max()),
    )
