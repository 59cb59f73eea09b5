"""Alpha over the checkpoints of one training run: how it moved, and whether it still moves."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spectail.basics.json_values import plain
from spectail.basics.texts import first_names, plural, visible
from spectail.errors import RunError
from spectail.results.records import LayerRecord, Results, RunInfo

if TYPE_CHECKING:
    import pandas as pd

STILL = 0.02
"""A drift of alpha below this over the second half of the checkpoints counts as none: about one
per cent of alpha."""
FEWEST = 4
"""Fewer checkpoints give no verdict: a line through three points leaves one degree of freedom."""
CONFIDENCE = 0.95
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Drift:
    """How far alpha moves over the second half of the checkpoints, by a straight line.

    The error is that of the line's slope, from the scatter of the checkpoints around it: the error
    bars of single alphas belong to independent models and are too wide for states of one model.
    """

    change: float
    half_width: float
    """Half of the 95 % confidence interval; NaN if there are too few checkpoints."""
    n: int

    @property
    def verdict(self) -> str:
        """``moving``, ``stopped`` (surely below STILL), or ``open`` if neither is sure."""
        if not math.isfinite(self.half_width):
            return "open"
        if abs(self.change) + self.half_width < STILL:
            return "stopped"
        return "moving" if abs(self.change) > self.half_width else "open"

    def __str__(self) -> str:
        """Say the verdict, and how sure it is."""
        if not math.isfinite(self.half_width):
            return f"open: {plural(self.n, 'checkpoint')} in the second half are too few to tell"
        moved = f"{self.change:+.3f} ± {self.half_width:.3f} over the second half (95 %)"
        return {
            "stopped": f"stopped moving: {moved}, surely less than {STILL:g}",
            "moving": f"still moving: {moved}",
            "open": f"open: {moved}",
        }[self.verdict]


@dataclass(frozen=True)
class Trajectory:
    """The analyses of several checkpoints of one model, in the order of training."""

    labels: tuple[str, ...]
    steps: tuple[float, ...]
    """The number in each label, or its place if the labels have none of their own."""
    runs: tuple[Results, ...]
    note: str = ""
    """A sentence that says so if the order is not that of numbers in the labels."""

    @classmethod
    def of(cls, runs: Mapping[str, Results]) -> Trajectory:
        """Order analyses by the number in their label; RunError if they do not compare."""
        if len(runs) < 2:
            raise RunError("a trajectory needs at least two checkpoints")
        numbers = _numbers(list(runs))
        steps = numbers or {label: float(place) for place, label in enumerate(runs)}
        order = sorted(runs, key=steps.__getitem__)
        first = runs[order[0]]
        for label in order[1:]:
            other = runs[label]
            require_same_windows(label, other.run, order[0], first.run)
            if other.measures_change != first.measures_change:
                raise RunError(
                    f"of {label} and {order[0]} one run measured the weights and one their change "
                    "from a base: measure all with the same --base, or none with one"
                )
        note = (
            "The names have no number each in which all differ: the checkpoints stand in the "
            f"order given, from {visible(order[0])} to {visible(order[-1])}."
        )
        found = cls(
            tuple(order),
            tuple(steps[k] for k in order),
            tuple(runs[label] for label in order),
            "" if numbers else note,
        )
        if not found.layers:
            raise RunError(
                f"no layer has an alpha in all of {first_names(order, 2)}: they must be "
                "checkpoints of one model, and the tables of their runs say what was skipped"
            )
        return found

    @cached_property
    def _by_name(self) -> tuple[dict[str, LayerRecord], ...]:
        """The records of each run by name."""
        return tuple({layer.name: layer for layer in run.layers} for run in self.runs)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that have an alpha in every checkpoint, and compare."""
        good = [
            {
                name
                for name, x in run.items()
                if x.status == "ok" and x.comparable and math.isfinite(x.alpha)
            }
            for run in self._by_name
        ]
        return tuple(name for name in self._by_name[0] if all(name in names for names in good))

    @cached_property
    def left_out(self) -> tuple[str, ...]:
        """Names of the other layers that were to be measured, in the order they are first seen."""
        names = dict.fromkeys(
            name for run in self._by_name for name, x in run.items() if x.status != "skipped"
        )
        drawn = set(self.layers)
        return tuple(name for name in names if name not in drawn)

    def records(self, name: str) -> tuple[LayerRecord, ...]:
        """Return the records of one layer, checkpoint by checkpoint."""
        return tuple(run[name] for run in self._by_name)

    def alphas(self) -> dict[str, NDArray[np.float64]]:
        """Return the alphas of every layer of ``layers``."""
        return {name: np.array([x.alpha for x in self.records(name)]) for name in self.layers}

    def mean(self) -> NDArray[np.float64]:
        """Return the mean alpha over the layers, checkpoint by checkpoint."""
        return np.asarray(np.mean(list(self.alphas().values()), axis=0))

    def drift(self, values: NDArray[np.float64]) -> Drift:
        """Return how numbers, one per checkpoint, move over the second half of the checkpoints."""
        return drift(self.steps, values)

    @property
    def table(self) -> pd.DataFrame:
        """One row per layer and checkpoint: label, step, name, block, kind, alpha, alpha_se."""
        import pandas as pd  # slow to import, and not needed before

        rows = [
            {
                "label": label, "step": step, "name": x.name, "block": x.block, "kind": x.kind,
                "alpha": x.alpha, "alpha_se": x.alpha_se, "alpha_null": x.alpha_null,
                "status": x.status, "reason": x.reason,
            }
            for label, step, run in zip(self.labels, self.steps, self.runs, strict=True)
            for x in run.layers
        ]  # fmt: skip
        return pd.DataFrame(rows).astype({"block": "float64"})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: alphas of every layer, and the verdicts."""
        alphas = self.alphas()
        rows = [
            {"name": name, "alphas": values.tolist(), **_values(self.drift(values))}
            for name, values in alphas.items()
        ]
        mean = self.mean()
        found: dict[str, Any] = plain(
            {
                "checkpoints": list(self.labels),
                "steps": list(self.steps),
                "mean": {"alphas": mean.tolist(), **_values(self.drift(mean))},
                "layers": rows,
                "left_out": list(self.left_out),
            }
        )
        return found


def drift(steps: Sequence[float], values: NDArray[np.float64]) -> Drift:
    """Fit a line to the second half of the values and return its rise, with a 95 % interval.

    It uses at least three points. Student's t gives the interval, with the residual scatter.
    """
    from scipy.stats import t as student  # slow to import, and not needed before

    half = max(3, math.ceil(len(values) / 2))
    x, y = np.array(steps[-half:], dtype=np.float64), np.asarray(values[-half:])
    span = float(x[-1] - x[0])
    if x.size < 2 or span <= 0:
        return Drift(math.nan, math.nan, x.size)
    slope, height = np.polyfit(x, y, 1)
    if len(values) < FEWEST:
        return Drift(float(slope * span), math.nan, x.size)
    freedom = x.size - 2
    scatter = math.sqrt(float(np.sum((y - slope * x - height) ** 2)) / freedom)
    error = scatter / math.sqrt(float(np.sum((x - x.mean()) ** 2)))
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, freedom))
    return Drift(float(slope * span), quantile * error * span, x.size)


def _values(found: Drift) -> dict[str, Any]:
    return {"change": found.change, "half_width": found.half_width, "verdict": found.verdict}


def require_same_windows(label: str, run: RunInfo, other: str, first: RunInfo) -> None:
    """Raise RunError if two checkpoints are measured in other windows or with other settings."""
    if (run.spec, run.window) != (first.spec, first.window):
        raise RunError(
            f"{label} is measured in windows of {run.window} and {other} in windows of "
            f"{first.window}, or with other settings: give one --window for all"
        )


def _numbers(labels: Sequence[str]) -> dict[str, float]:
    """Return the number in which all labels differ, which is the step; nothing if there is none."""
    numbers = [[int(n) for n in _NUMBER.findall(label)] for label in labels]
    if len({len(found) for found in numbers}) == 1:
        for place in range(len(numbers[0]) - 1, -1, -1):
            column = [found[place] for found in numbers]
            if len(set(column)) == len(labels):
                return dict(zip(labels, map(float, column), strict=True))
    return {}
