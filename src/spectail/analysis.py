"""Analysis: the results of a run, to read, plot, save and load. No torch: results are used where models are not."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from spectail.errors import RunError
from spectail.report.html import report_html
from spectail.report.plots import alpha_by_depth, layer_spectrum
from spectail.results.compare import Comparison, pair_layers
from spectail.results.records import LayerRecord, Results, RunInfo
from spectail.results.table import layer_table

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ANALYSIS_FILE = "analysis.json"
FILES = ("layers.csv", "layers.parquet", "report.html", ANALYSIS_FILE)
"""What ``save`` writes, the analysis last: where it exists, the others are whole."""


@dataclass(frozen=True)
class Analysis(Results):
    """What ``analyze`` returns: ``run`` (what was asked), ``layers`` (one record each), and ways to look at them."""

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per layer, the columns of ``records.COLUMNS``; skipped and failed layers keep their row."""
        return layer_table(self)

    def plot(self) -> go.Figure:
        """Alpha across depth, a line per kind of layer, with error bars and the null as a band."""
        return alpha_by_depth(self)

    def plot_layer(self, name: str) -> go.Figure:
        """The spectrum of one layer with its tail fit, xmin and null; KeyError-like RunError for an unknown name."""
        if all(layer.name != name for layer in self.layers):
            raise RunError(f"no layer {name!r} in this analysis; analysis.table['name'] lists them")
        return layer_spectrum(self, name)

    def save(self, folder: str | Path) -> Path:
        """Write table, analysis and report into ``folder``; returns the path of the report. Each file appears whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with _Staged(folder) as staged:
            self.table.to_csv(staged("layers.csv"), index=False)
            self.table.to_parquet(staged("layers.parquet"), index=False)
            staged("report.html").write_text(report_html(self), encoding="utf-8")
            staged(ANALYSIS_FILE).write_text(
                json.dumps(self.to_dict(), allow_nan=False), encoding="utf-8"
            )
        return folder / "report.html"

    @classmethod
    def load(cls, folder: str | Path) -> Analysis:
        """Read what ``save`` wrote (a folder, or its analysis.json); RunError where there is no finished analysis."""
        path = Path(folder)
        path = path / ANALYSIS_FILE if path.is_dir() else path
        if not path.is_file():
            raise RunError(
                f"no finished analysis at {folder}: expected {ANALYSIS_FILE}, as spectail analyze writes it"
            )
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            layers = tuple(LayerRecord.from_dict(layer) for layer in stored["layers"])
            return cls(RunInfo.from_dict(stored["run"]), layers)
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{path} is not an analysis that this version can read ({error})"
            ) from error

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        html: str = self.table.to_html(
            index=False, max_rows=60, float_format="{:.4g}".format, na_rep=""
        )
        return html


def compare(a: Analysis | str | Path, b: Analysis | str | Path) -> Comparison:
    """Pair the layers of two analyses (or their folders) by name and say what moved from ``a`` to ``b``."""
    first, second = (x if isinstance(x, Analysis) else Analysis.load(x) for x in (a, b))
    return pair_layers(first, second)


class _Staged:
    """Files written under temporary names that get their own names together when all of them are whole."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, list[str]()

    def __enter__(self) -> _Staged:
        return self

    def __call__(self, name: str) -> Path:
        self.names.append(name)
        return self._temporary(name)

    def __exit__(self, failure: type[BaseException] | None, *rest: object) -> None:
        for name in self.names:
            if failure is None:
                os.replace(self._temporary(name), self.folder / name)
            else:
                self._temporary(name).unlink(missing_ok=True)

    def _temporary(self, name: str) -> Path:
        return self.folder / f".{name}.part"
