"""The report of a pruning run: sparsity asked for and reached by layer and in total, and notes."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectail.allocation.left_out import LeftOut, describe_left_out
from spectail.basics.files import write_text
from spectail.basics.json_values import plain
from spectail.basics.texts import first_names
from spectail.evaluation import Perplexity, Rule
from spectail.evaluation.bos import WORDS
from spectail.pruning.setting import Setting
from spectail.results.depth import DepthCorrelations
from spectail.results.table import table_html

if TYPE_CHECKING:
    import pandas as pd

_FORMAT = "spectail pruning"
NO_GAIN = (
    "Zeros alone make nothing smaller or faster: the file and the arithmetic are those of the "
    "dense model, unless a sparse format or kernel uses them."
)
"""The caveat at the end of every summary and at the top of every page."""


@dataclass(frozen=True)
class Note:
    """What a user should know, and what it is about."""

    subject: str
    """A part of the run (``calibration``), or names of layers."""
    text: str

    def __str__(self) -> str:
        """Write the note in one line."""
        return f"{self.subject}: {self.text}"


@dataclass(frozen=True)
class PrunedLayer:
    """One layer after pruning."""

    name: str
    requested: float
    """The ratio of zeros that was asked for."""
    realised: float
    """The ratio of zeros after pruning, including those that were there before."""
    zeros: int
    numel: int
    """The number of weights."""
    quota: str
    """What the ratio became: a number of zeros, or ``n:m``."""
    note: str = ""


@dataclass(frozen=True)
class Evaluated:
    """The perplexity on one test text before and after pruning."""

    text: str
    """The name of the text."""
    before: Perplexity
    after: Perplexity

    def describe(self) -> str:
        """Return one line with both perplexities."""
        # The ratio tells more than the difference: dense perplexities vary widely between texts.
        change = f" ({self.after / self.before:.3g} times)" if math.isfinite(self.after) else ""
        return (
            f"perplexity on {self.text} (test text): "
            f"dense {self.before:.5g}, {_after(self.after)}{change}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"text": self.text, "before": self.before.to_dict(), "after": self.after.to_dict()}


@dataclass(frozen=True)
class Selected:
    """How the allocation's setting was chosen."""

    text: str
    """The name of the selection text, or which part of the calibration text it is."""
    setting: Setting
    """The candidate with the lowest perplexity."""
    dense: Perplexity
    """The perplexity of the model before pruning, on the selection text."""
    perplexities: tuple[tuple[Setting, float], ...]
    """(setting, perplexity on the selection text) of every candidate; NaN if the pruned model's
    logits are NaN."""

    def describe(self) -> str:
        """Return one line with the choice and the perplexities of the candidates' form."""
        # A rule with several forms has dozens of candidates; the saved report holds them all.
        shown = ", ".join(
            f"{s.key}: {value:.5g}" for s, value in self.perplexities if s.form == self.setting.form
        )
        return (
            f"{self.setting} chosen by selection perplexity (not a test result) on "
            f"{self.text}: {shown}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with null for perplexities that are not finite."""
        candidates = [
            {**setting.to_dict(), "perplexity": value} for setting, value in self.perplexities
        ]
        return {
            "text": self.text,
            **self.setting.to_dict(),
            "dense": self.dense.to_dict(),
            "candidates": plain(candidates),
        }


def _after(value: float) -> str:
    return (
        f"pruned {value:.5g}"
        if math.isfinite(value)
        else "the pruned model gives no finite perplexity"
    )


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """The result of ``prune``: one row per layer, in the order of pruning, and facts on the run."""

    method: str
    settings: dict[str, Any]
    """The method's options."""
    pattern: str | None
    layers: tuple[PrunedLayer, ...]
    calibration: tuple[int, int] | None
    """The number of samples and of tokens per sample; None if no text was used."""
    seconds: float
    """Seconds spent on pruning, without measuring alphas and evaluating."""
    left_out: tuple[LeftOut, ...] = ()
    """Layers that stay dense, each with the reason."""
    complete: bool = True
    """False if pruning was interrupted; layers without a row are then unchanged."""
    evaluated: tuple[Evaluated, ...] = ()
    """Perplexity before and after on each test text; empty in what ``prune`` itself returns."""
    selected: Selected | None = None
    """How eps was chosen; None if it was given."""
    bos: Rule | None = None
    """Where the beginning-of-sequence token (BOS) stood in the texts of the run; None if no text,
    or only token ids, were given."""
    remarks: tuple[Note, ...] = ()
    """What a user should know about the run as a whole."""
    depth: DepthCorrelations | None = None
    """How the allocation goes with depth; None where it has no such number, or is no allocation."""

    @property
    def numel(self) -> int:
        """The number of weights of all pruned layers."""
        return sum(layer.numel for layer in self.layers)

    @property
    def requested(self) -> float:
        """The ratio of zeros asked for over all weights of the pruned layers."""
        # By weights, not by layers; an empty report (interrupted at once) has ratio 0.
        return sum(layer.requested * layer.numel for layer in self.layers) / max(1, self.numel)

    @property
    def realised(self) -> float:
        """The ratio of zeros over all weights of the pruned layers."""
        return sum(layer.zeros for layer in self.layers) / max(1, self.numel)

    @property
    def notes(self) -> tuple[Note, ...]:
        """Remarks on the run, then on layers (raised damping, experts without tokens).

        Layers with the same note share one.
        """
        # Hundreds of experts may have the same note.
        noted: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.note:
                noted.setdefault(layer.note, []).append(layer.name)
        return self.remarks + tuple(Note(first_names(n), note) for note, n in noted.items())

    def describe_bos(self) -> str:
        """Return a phrase that says where BOS stood in the texts of the run."""
        if self.bos is None:
            return ""
        # Samples come from the middle of the text, where ``first`` puts no BOS.
        inside = self.bos == "first" and self.calibration
        return WORDS[self.bos] + ("; none in calibration samples" if inside else "")

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per layer: name, requested, realised, zeros, numel, quota, note."""
        import pandas as pd  # slow to import, and the command line needs no table

        names = [field.name for field in dataclasses.fields(PrunedLayer)]
        return pd.DataFrame([dataclasses.asdict(layer) for layer in self.layers], columns=names)

    def summary(self) -> str:
        """Return a few lines: method, sparsity asked for and reached, depth, perplexity, notes."""
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
        if self.depth:
            lines += self.depth.describe("the ratios")
        if self.bos:
            lines.append(f"BOS: {self.describe_bos()}")
        lines += describe_left_out(self.left_out)
        if self.selected:
            lines.append(self.selected.describe())
        lines += [evaluated.describe() for evaluated in self.evaluated]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes), NO_GAIN])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lists = {
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "left_out": [layer.to_dict() for layer in self.left_out],
            "notes": [str(note) for note in self.notes],
            "remarks": [str(note) for note in self.remarks],
        }
        texts = {
            "evaluated": [evaluated.to_dict() for evaluated in self.evaluated],
            "selected": self.selected.to_dict() if self.selected else None,
            "depth": self.depth.to_dict() if self.depth else None,
        }
        shape = list(self.calibration) if self.calibration else None
        totals = {"requested": self.requested, "realised": self.realised, "numel": self.numel}
        # Later entries replace the objects of ``own`` by their plain values.
        return {"format": _FORMAT, **own, **totals, "calibration": shape, **lists, **texts}

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON, completely or not at all."""
        return write_text(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return table_html(self.table)
