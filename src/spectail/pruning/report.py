"""What pruning did: sparsity asked and reached per layer and in total, time, and what to know about it."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from spectail.allocation.coverage import LeftOut, describe_left_out
from spectail.evaluation import Perplexity, Rule
from spectail.evaluation.bos import WORDS

_FORMAT = "spectail pruning"
NO_GAIN = (
    "Zeros alone make nothing smaller or faster: the file and the arithmetic are those of the dense model, "
    "unless a sparse format or kernel uses them."
)


@dataclass(frozen=True)
class PrunedLayer:
    """One layer after pruning."""

    name: str
    requested: float
    """The ratio of zeros that was asked for."""
    realised: float
    """The ratio of zeros that it now has, those that were there before included."""
    zeros: int
    numel: int
    quota: str
    """How many zeros the ratio became, as a number or as ``n:m``."""
    note: str = ""


@dataclass(frozen=True)
class Evaluated:
    """What pruning cost on one test text."""

    text: str
    """Its name."""
    before: Perplexity
    after: Perplexity

    def describe(self) -> str:
        """One line: before and after."""
        change = f" ({self.after / self.before:.3g} times)" if math.isfinite(self.after) else ""
        return f"perplexity on {self.text} (test text): dense {self.before:.5g}, {_after(self.after)}{change}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"text": self.text, "before": self.before.to_dict(), "after": self.after.to_dict()}


@dataclass(frozen=True)
class Selected:
    """How eps was chosen."""

    text: str
    """Where the selection text was taken from."""
    eps: float
    dense: Perplexity
    """Of the model before pruning, on the selection text."""
    perplexities: tuple[tuple[float, float], ...]
    """(eps, perplexity on the selection text) of every candidate; NaN for a model that gives
    NaN."""

    def describe(self) -> str:
        """One line: the choice, and what it was chosen by."""
        shown = ", ".join(f"{eps:g}: {value:.5g}" for eps, value in self.perplexities)
        return f"eps {self.eps:g} chosen by selection perplexity (not a test result) on {self.text}: {shown}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite is null."""
        scores = [
            {"eps": eps, "perplexity": value if math.isfinite(value) else None}
            for eps, value in self.perplexities
        ]
        return {
            "text": self.text,
            "eps": self.eps,
            "dense": self.dense.to_dict(),
            "candidates": scores,
        }


def _after(value: float) -> str:
    return (
        f"pruned {value:.5g}"
        if math.isfinite(value)
        else "the pruned model gives no finite perplexity"
    )


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What ``prune`` returns: one row per pruned layer, in the order in which they were pruned."""

    method: str
    settings: dict[str, Any]
    """The method's options."""
    pattern: str | None
    layers: tuple[PrunedLayer, ...]
    calibration: tuple[int, int] | None
    """Samples and tokens per sample, None where no text was used."""
    seconds: float
    left_out: tuple[LeftOut, ...] = ()
    """Layers that stay dense, each with the reason."""
    complete: bool = True
    """False where pruning was interrupted: other layers are as they were."""
    evaluated: tuple[Evaluated, ...] = ()
    """Perplexity before and after, one for each test text; ``prune`` itself measures none."""
    selected: Selected | None = None
    """How eps was chosen, None where it was given."""
    bos: Rule | None = None
    """Where BOS was in the texts of the run; None where no text, or only token ids, were given."""
    remarks: tuple[str, ...] = ()
    """What to know about the run as a whole."""

    @property
    def numel(self) -> int:
        """Weights of all pruned layers."""
        return sum(layer.numel for layer in self.layers)

    @property
    def requested(self) -> float:
        """The ratio of zeros asked for over all weights of the pruned layers."""
        return sum(layer.requested * layer.numel for layer in self.layers) / max(1, self.numel)

    @property
    def realised(self) -> float:
        """The ratio of zeros over all weights of the pruned layers."""
        return sum(layer.zeros for layer in self.layers) / max(1, self.numel)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know: remarks on the run, then on layers (raised damping, experts without tokens).

        Each remark comes once, after what it is about and a colon.
        """
        noted: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.note:
                noted.setdefault(layer.note, []).append(layer.name)
        return self.remarks + tuple(
            f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {note}"
            for note, names in noted.items()
        )

    def describe_bos(self) -> str:
        """Where BOS was in the texts of the run, as a phrase."""
        if self.bos is None:
            return ""
        inside = self.bos == "first" and self.calibration
        return WORDS[self.bos] + ("; none in calibration samples" if inside else "")

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per layer: name, requested, realised, zeros, numel, quota, note."""
        names = [field.name for field in dataclasses.fields(PrunedLayer)]
        return pd.DataFrame([dataclasses.asdict(layer) for layer in self.layers], columns=names)

    def summary(self) -> str:
        """A few lines: method, sparsity asked and reached, the range, time, notes."""
        how = self.method + (f" {self.pattern}" if self.pattern else "")
        text = (
            f", {self.calibration[0]} x {self.calibration[1]} calibration tokens"
            if self.calibration
            else ""
        )
        lines = [
            f"{how}: {len(self.layers)} layers, {self.numel:,} weights{text}, {self.seconds:.1f} s"
        ]
        if self.layers:
            ratios = [layer.realised for layer in self.layers]
            lines.append(
                f"sparsity {self.realised:.6f} (asked {self.requested:.6f}), "
                f"layers from {min(ratios):.4f} to {max(ratios):.4f}"
            )
        if self.bos:
            lines.append(f"BOS: {self.describe_bos()}")
        lines += describe_left_out(self.left_out)
        if self.selected:
            lines.append(self.selected.describe())
        lines += [evaluated.describe() for evaluated in self.evaluated]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), NO_GAIN])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lists = {
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "left_out": [dataclasses.asdict(layer) for layer in self.left_out],
            "notes": list(self.notes),
            "remarks": list(self.remarks),
        }
        texts = {
            "evaluated": [evaluated.to_dict() for evaluated in self.evaluated],
            "selected": self.selected.to_dict() if self.selected else None,
        }
        shape = list(self.calibration) if self.calibration else None
        totals = {"requested": self.requested, "realised": self.realised, "numel": self.numel}
        return {"format": _FORMAT, **own, **totals, "calibration": shape, **lists, **texts}

    def save(self, path: str | Path) -> Path:
        """Write JSON."""
        path = Path(path)
        path.write_text(
            json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        return path

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        html: str = self.table.to_html(
            index=False, max_rows=60, float_format="{:.4g}".format, na_rep=""
        )
        return html
