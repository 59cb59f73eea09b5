"""The history of a training run: alphas and factors of every measurement of a Balancer."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, overload

import msgspec

from spectail.analysis import Analysis
from spectail.basics.files import all_or_nothing, content_of
from spectail.basics.json_values import plain
from spectail.basics.schema import Count, Finite, SchemaError, checked, parse_json
from spectail.errors import RunError, TrainingError
from spectail.report.theme import axis, figure, safe
from spectail.results.records import LayerRecord, RunInfo
from spectail.results.scalars import scalars
from spectail.results.table import for_spreadsheets
from spectail.training.state import Factor

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

CHANGING = ("alpha", "xmin", "n_tail", "ks", "n_zero", "weight_var", "status", "reason")
"""The columns that may differ between two measurements of a layer; the others are stored once."""
COLUMNS = ("step", "applied", "name", "alpha", "factor")
_ONE_EACH = msgspec.Meta(min_length=len(CHANGING), max_length=len(CHANGING))
HISTORY_FILE = "history.json"
_FORMAT = "spectail training history"


@dataclass(frozen=True)
class Update:
    """One measurement and the factors it led to."""

    step: int
    """The number of optimizer steps when the weights were measured."""
    applied: int
    """The number of optimizer steps when the factors were applied; more than ``step`` if the
    measurement ran in the background.
    """
    alphas: dict[str, float]
    """The alphas of the layers that take part and could be measured."""
    factors: dict[str, float]
    """The factors of all layers that take part, as they are after the rule's transition."""
    layers: dict[str, list[Any]]
    """For each layer the values of the columns in ``CHANGING``; None for NaN."""

    def scalars(self) -> dict[str, float]:
        """Return ``mean_alpha``, ``alpha/<layer>`` and ``factor/<layer>``, for a logger."""
        return scalars(self.alphas, self.factors)


class _StoredUpdate(msgspec.Struct):
    """One measurement, as it is stored."""

    step: Count
    applied: Count
    alphas: dict[str, Finite]
    factors: dict[str, Factor]
    layers: dict[str, Annotated[list[Any], _ONE_EACH]]


class StoredHistory(msgspec.Struct):
    """What ``History.to_dict`` gives."""

    format: str
    run: dict[str, Any]
    rule: dict[str, Any]
    names: list[str]
    layers: list[dict[str, Any]]
    updates: list[_StoredUpdate]

    def __post_init__(self) -> None:
        """Refuse a file of something else."""
        if self.format != _FORMAT:
            raise ValueError("it is not a history of training")


class History(Sequence[Update]):
    """The measurements of one training run, in order.

    ``table`` has one row per measurement and layer. ``at(step)`` is an Analysis that can be saved,
    plotted and compared.
    """

    def __init__(self, run: RunInfo, rule: Mapping[str, Any]) -> None:
        self.run, self.rule = run, dict(rule)
        self._updates: list[Update] = []
        self._layers: dict[str, LayerRecord] = {}

    def __len__(self) -> int:
        return len(self._updates)

    @overload
    def __getitem__(self, index: int) -> Update: ...
    @overload
    def __getitem__(self, index: slice) -> list[Update]: ...
    def __getitem__(self, index: int | slice) -> Update | list[Update]:
        return self._updates[index]

    def __iter__(self) -> Iterator[Update]:
        return iter(self._updates)

    def add(
        self,
        step: int,
        applied: int,
        records: Sequence[LayerRecord],
        *,
        alphas: dict[str, float],
        factors: dict[str, float],
    ) -> Update:
        """Add one measurement."""
        for record in records:
            # The first good record of a layer holds what never changes: its kind, shape and window.
            if record.name not in self._layers or self._layers[record.name].status != "ok":
                self._layers[record.name] = replace(record, seconds=0.0)
        layers = {
            record.name: plain([getattr(record, name) for name in CHANGING]) for record in records
        }
        self._updates.append(Update(step, applied, dict(alphas), dict(factors), layers))
        return self._updates[-1]

    @property
    def table(self) -> pd.DataFrame:
        """A row per measurement and layer: step, applied, name, alpha (NaN if missing), factor."""
        import pandas as pd  # slow to import, and training needs no table

        rows = [
            (update.step, update.applied, name, update.alphas.get(name, math.nan), factor)
            for update in self
            for name, factor in update.factors.items()
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def at(self, step: int) -> Analysis:
        """Return the layers as measured after ``step`` steps, as an Analysis.

        A negative number counts measurements from the last one. Error bars and norms are not
        measured in training. Raises RunError for a step without a measurement.
        """
        steps = [update.step for update in self]
        if step < 0 and -step <= len(steps):
            step = steps[step]
        if step not in steps:
            known = ", ".join(map(str, steps[:6])) + (", ..." if len(steps) > 6 else "")
            raise RunError(
                f"nothing was measured at step {step}; there are measurements at "
                f"{known or 'no step yet'}"
            )
        # The last measurement at this step, if there are several.
        update = self._updates[len(steps) - 1 - steps[::-1].index(step)]
        layers = tuple(self._record(name, values) for name, values in update.layers.items())
        # No fingerprint of the weights exists for a live model; alphas tell measurements apart.
        digest = hashlib.sha256(json.dumps(update.layers, sort_keys=True).encode()).hexdigest()
        note = f"Measured after {step} optimizer steps, without error bars and norms."
        return Analysis(
            replace(self.run, fingerprint=f"alphas:{digest}", notes=(*self.run.notes, note)), layers
        )

    def plot(self, value: str = "alpha") -> go.Figure:
        """Draw alpha (or ``factor``) over optimizer steps, with one line per layer."""
        if value not in ("alpha", "factor"):
            raise RunError(f"a history plots alpha or factor, not {value!r}")
        fig = figure(xaxis=axis("optimizer steps"), yaxis=axis(value))
        for name, rows in self.table.groupby("name", sort=False):
            fig.add_scatter(
                x=rows["step"], y=rows[value], name=safe(str(name)), mode="lines+markers"
            )
        return fig

    def save(self, folder: str | Path) -> Path:
        """Write ``history.json``, ``history.csv`` and a ``step_N.json`` for each measurement."""
        steps = {f"step_{step}.json": self.at(step) for step in {update.step for update in self}}
        paths = [Path(folder) / name for name in ("history.csv", *steps, HISTORY_FILE)]
        with all_or_nothing(*paths) as (csv, *others, history):
            for_spreadsheets(self.table).to_csv(csv, index=False)
            for path, found in zip(others, steps.values(), strict=True):
                path.write_text(json.dumps(found.to_dict(), allow_nan=False), encoding="utf-8")
            history.write_text(json.dumps(self.to_dict(), allow_nan=False), encoding="utf-8")
        return paths[-1]

    @classmethod
    def load(cls, folder: str | Path) -> History:
        """Read what ``save`` wrote; RunError if there is no history."""
        path = Path(folder)
        path = path / HISTORY_FILE if path.is_dir() else path
        if not path.is_file():
            raise RunError(
                f"no history at {folder}: expected {HISTORY_FILE}, as History.save writes it"
            )
        try:
            return cls.from_dict(parse_json(content_of(path)))
        except (ValueError, TrainingError) as error:
            raise RunError(
                f"{path} is not a history that this version can read ({error})"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the history as plain JSON values."""
        return {
            "format": _FORMAT,
            "run": self.run.to_dict(),
            "rule": self.rule,
            "names": _merged([list(update.factors) for update in self]),
            "layers": [
                self._layers[name].to_dict()
                for name in _merged([list(update.layers) for update in self])
            ],
            "updates": [asdict(update) for update in self],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> History:
        """Build a history from the result of ``to_dict``; TrainingError for anything else.

        The order of the layers is restored even if the file was stored with sorted keys.
        """
        try:
            given = checked(StoredHistory, stored)
            history = cls(RunInfo.from_dict(given.run), given.rule)
            records = map(LayerRecord.from_dict, given.layers)
            history._layers = {record.name: record for record in records}
            for update in given.updates:
                # JSON written with sorted keys has lost the order of the layers.
                ordered = Update(
                    update.step,
                    update.applied,
                    {name: update.alphas[name] for name in given.names if name in update.alphas},
                    {name: update.factors[name] for name in given.names if name in update.factors},
                    {
                        name: update.layers[name]
                        for name in history._layers
                        if name in update.layers
                    },
                )
                history._updates.append(ordered)
                # The values are checked now, though ``at`` will read them later.
                for name, values in ordered.layers.items():
                    history._record(name, values)
        except SchemaError as error:
            raise TrainingError(
                f"it is not a history that this version can read ({error})"
            ) from error
        return history

    def _record(self, name: str, values: Sequence[Any]) -> LayerRecord:
        changed = dict(zip(CHANGING, values, strict=True))
        return LayerRecord.from_dict(self._layers[name].to_dict() | changed)


def _merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """Merge several orders of names; a new name comes after its predecessor in its own order.

    >>> _merged([["a", "c"], ["a", "b", "c"], ["c", "d"]])
    ['a', 'b', 'c', 'd']
    """
    merged: list[str] = []
    for order in dict.fromkeys(map(tuple, orders)):
        place = 0
        for name in order:
            if name not in merged:
                merged.insert(place, name)
            place = merged.index(name) + 1
    return merged
