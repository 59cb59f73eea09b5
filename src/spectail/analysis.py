"""The results of a run, to read, plot, save and load without torch."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectail.basics.addresses import is_address, unfolded, without_secrets
from spectail.basics.files import all_or_nothing, content_of, refuse_foreign
from spectail.basics.schema import SchemaError, build, each, parse_json
from spectail.errors import RunError
from spectail.report.page import page_mark
from spectail.report.plots import alpha_by_depth
from spectail.report.run_page import EYEBROW, report_html
from spectail.report.spectrum_plot import layer_spectrum
from spectail.report.words import standing_out
from spectail.results.compare import Comparison, pair_layers
from spectail.results.depth import RankCorrelation, alpha_with_depth
from spectail.results.records import LayerRecord, Results, RunInfo
from spectail.results.scalars import scalars
from spectail.results.summary import Summary, summarize
from spectail.results.table import for_spreadsheets, layer_table, table_html, with_whole_blocks

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ANALYSIS_FILE = "analysis.json"
FILES = ("layers.csv", "layers.parquet", "report.html", ANALYSIS_FILE)
"""The files that ``save`` writes. The analysis is last: if it exists, the others are complete."""
_MARKS = {
    "layers.csv": b"name,block,kind,rows,cols",
    "layers.parquet": b"alpha_null",
    "report.html": page_mark(EYEBROW),
    ANALYSIS_FILE: b'"fingerprint"',
}
"""Bytes near the beginning or end by which each of FILES is recognised as one of spectail."""


@dataclass(frozen=True)
class Analysis(Results):
    """The result of ``analyze``: ``run`` (the settings) and ``layers`` (one record each)."""

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per layer, skipped and failed ones included, with ``records.COLUMNS``."""
        return layer_table(self)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Give the table to any library that reads Arrow's stream interface (PyCapsule).

        ``polars.DataFrame(analysis)``, ``pyarrow.table(analysis)`` and DuckDB's ``FROM analysis``
        take it. What was not measured is null, and ``block`` holds integers.
        """
        import pyarrow as pa  # slow to import, and a run needs it only at its end

        table = pa.Table.from_pandas(with_whole_blocks(self.table), preserve_index=False)
        return table.__arrow_c_stream__(requested_schema)

    @cached_property
    def depth_correlation(self) -> RankCorrelation | None:
        """Rank correlation of alpha with depth over the blocks; None for fewer than four blocks.

        The mean of each kind of layer is taken out, because blocks may hold different kinds.
        """
        return alpha_with_depth(self.layers)

    def summary(self) -> Summary:
        """Summarize the run: counts, means by layers and by weights, and what stands out.

        ``print(analysis.summary())`` writes a few lines, ``summary()["alpha"].mean`` is a number.
        """
        return summarize(self, standing_out(self))

    def scalars(self) -> dict[str, float]:
        """Return ``mean_alpha`` and ``alpha/<layer>`` for a logger, without unmeasured layers.

        ``wandb.log(analysis.scalars(), step=step)``; MLflow's ``log_metrics`` takes the same.
        """
        return scalars({layer.name: layer.alpha for layer in self.layers})

    def plot(self) -> go.Figure:
        """Plot alpha across depth: a line per kind of layer, and a band for random matrices.

        The band is the null, and each point has its error bar.
        """
        return alpha_by_depth(self)

    def plot_layer(self, name: str) -> go.Figure:
        """Plot the spectrum of one layer with its tail fit, xmin and null (a random matrix).

        Raises RunError if there is no layer of this name.
        """
        if all(layer.name != name for layer in self.layers):
            raise RunError(f"no layer {name!r} in this analysis; analysis.table['name'] lists them")
        return layer_spectrum(self, name)

    def save(self, folder: str | Path) -> Path:
        """Write table, analysis and report into ``folder`` and return the report's path.

        The files are replaced only when all of them are complete. Raises RunError if one of their
        names belongs to a file that spectail did not write.
        """
        refuse_foreign_files(Path(folder))
        paths = [Path(folder) / name for name in FILES]
        with all_or_nothing(*paths) as (csv, parquet, report, analysis):
            table = with_whole_blocks(self.table)
            for_spreadsheets(table).to_csv(csv, index=False)
            with parquet.open("wb") as file:  # pyarrow opens no path that is not UTF-8
                table.to_parquet(file, index=False)
            report.write_text(report_html(self), encoding="utf-8")
            analysis.write_text(json.dumps(self.to_dict(), allow_nan=False), encoding="utf-8")
        return Path(folder) / "report.html"

    @classmethod
    def load(cls, folder: str | Path) -> Analysis:
        """Read an analysis from a folder that ``save`` wrote, or from its analysis.json.

        Raises RunError if there is no finished analysis, or this version cannot read it.
        """
        path = Path(folder)
        path = path / ANALYSIS_FILE if path.is_dir() else path
        if not path.is_file():
            raise RunError(f"no finished analysis at {_shown(folder)}: {_advice(Path(folder))}")
        # A model may be many gigabytes long, and is seldom called so.
        if path.suffix != ".json":
            raise RunError(f"{path} is no analysis: {_advice(path)}")
        try:
            return build(cls, parse_json(content_of(path)), run=RunInfo.from_dict, layers=_rows)
        except ValueError as error:
            raise RunError(
                f"{path} is not an analysis that this version can read ({error}); restore it, or "
                "measure the model again with spectail analyze"
            ) from error

    def __repr__(self) -> str:
        """Describe the run in three lines."""
        found, run = summarize(self), self.run
        window = f"windows of {run.window}" if run.window else f"window {run.spec.window}"
        counts = ", ".join(f"{n} {status}" for status, n in found.counts.items() if n)
        lines = [
            f"Analysis of {found.source}: {counts or 'no layers'} ({window}, {run.spec.cutoff})"
        ]
        if alpha := found.statistics.get("alpha"):
            lines.append(
                f"alpha {alpha.mean:.3f} on average (by weights {alpha.weighted_mean:.3f}), "
                f"{alpha.least:.3f} to {alpha.greatest:.3f}"
            )
        return "\n".join([*lines, "more: .summary(), .table, .plot(), .save(folder)"])

    def _repr_html_(self) -> str:
        """Return the table as HTML, for notebooks."""
        return table_html(self.table)


def _shown(folder: str | Path) -> str:
    """Return a path for messages; an address was typed in place of a path, maybe with secrets."""
    return without_secrets(unfolded(str(folder)))


def _advice(path: Path) -> str:
    """Say what to do with something that is no finished analysis."""
    if path.is_dir() and any(path.glob("part-*-of-*")):
        return f"it holds parts of a run; join them with: spectail merge {shlex.quote(str(path))}"
    if (path / ".progress.jsonl").exists():
        return "the run is not finished; run the same spectail analyze command again to go on"
    expected = f"expected a folder with {ANALYSIS_FILE}, as spectail analyze writes it"
    if path.exists() or is_address(_shown(path)):
        source = shlex.quote(_shown(path))
        return f"{expected}; measure a model first, with: spectail analyze {source} --out DIR"
    return expected


def _rows(stored: Any) -> tuple[LayerRecord, ...]:
    """Restore the records of all layers, each with a name of its own."""
    rows = each(LayerRecord.from_dict, stored)
    if len({row.name for row in rows}) < len(rows):
        raise SchemaError("a layer is in it twice")
    return rows


def refuse_foreign_files(folder: Path) -> None:
    """Raise RunError if one of FILES in a folder exists and is not of an analysis of spectail."""
    for name in FILES:
        refuse_foreign(folder / name, _MARKS[name], RunError)


def compare(a: Analysis | str | Path, b: Analysis | str | Path) -> Comparison:
    """Pair the layers of two analyses by name and compute what changed from ``a`` to ``b``.

    Each is an Analysis or a folder that ``spectail analyze`` wrote.
    """
    # Loading needs neither the model nor torch.
    first, second = (x if isinstance(x, Analysis) else Analysis.load(x) for x in (a, b))
    return pair_layers(first, second)
