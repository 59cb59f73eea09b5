"""Measuring one model from the command line: progress, storing, and what is printed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from spectail.analysis import Analysis
from spectail.basics.texts import visible
from spectail.cli.bar import Bar
from spectail.cli.options import only_json, print_json
from spectail.cli.terminal import Terminal
from spectail.measuring.engines import Engine, is_elsewhere
from spectail.measuring.journal import Journal
from spectail.measuring.layer import Plan
from spectail.measuring.planning import make_plan
from spectail.measuring.run import measure_plan
from spectail.measuring.shards import Shard, open_run, part_of
from spectail.models.source import Layer
from spectail.results.table import extremes, storable


@dataclass(frozen=True, kw_only=True)
class Runner:
    """What one source after the other is measured with."""

    console: Terminal
    measure: Engine
    settings: dict[str, Any]
    """Arguments of ``make_plan``."""
    shard: Shard | None
    fresh: bool
    json: bool

    def __call__(
        self, source: str, out: Path | None, values: Callable[[Analysis], Any] | None = None
    ) -> Analysis:
        """Measure a source, store it in ``out``, print the results, and ``values`` as JSON."""
        # A spinner only in a terminal: elsewhere its text would be mixed into the output.
        opening = self.console.status("opening the model")
        quiet = self.console.quiet or not self.console.is_terminal
        with nullcontext() if quiet else opening, only_json(self.json):
            plan = make_plan(source, **self.settings, elsewhere=is_elsewhere(self.measure))
        if out is None:
            return self._measured(plan, None, values)
        with open_run(out, plan, self.shard, fresh=self.fresh) as journal:
            return self._measured(part_of(plan, self.shard), journal, values)

    def _measured(
        self, plan: Plan, journal: Journal | None, values: Callable[[Analysis], Any] | None
    ) -> Analysis:
        """Measure what the plan holds, store it if there is a journal, and print the results."""
        with _Bar(quiet=self.console.quiet) as bar, only_json(self.json):
            analysis = measure_plan(plan, self.measure, journal, progress=bar)
        try:
            if journal:
                journal.finish(analysis)
        finally:  # a full disk must not cost the user the numbers
            show(self.console, analysis)
            if values:
                print_json(values(analysis))
        if journal:
            self.console.print(f"report: {journal.path.parent / 'report.html'}")
        return analysis


class _Bar(Bar):
    """A progress bar with the current layer and the time left, estimated from weights done."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), quiet=quiet
        )

    def __call__(self, layer: Layer | None, done: int, total: int) -> None:
        # Names of layers differ at their end; 44 columns leave room for the bar in a line of 80.
        self.show(layer.name[-44:] if layer else "writing the report", done, total)


def show(console: Terminal, analysis: Analysis) -> None:
    """Print the layers of lowest and highest alpha, the summary, and failures."""
    heaviest, lightest = extremes(analysis.table)
    for title, rows in (
        ("Heaviest tails (lowest alpha)", heaviest),
        ("Lightest tails (highest alpha)", lightest),
    ):
        # Every layer may have failed or be too small.
        if not len(rows):
            continue
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for heading in ("layer", "shape", "alpha", "+-", "null"):
            table.add_column(
                heading, justify="left" if heading == "layer" else "right", overflow="fold"
            )
        for row in rows.to_dict("records"):
            numbers = (f"{row[key]:.3f}" for key in ("alpha", "alpha_se", "alpha_null"))
            table.add_row(visible(row["name"]), f"{row['rows']} x {row['cols']}", *numbers)
        console.print(table)
        console.print()
    console.print(storable(str(analysis.summary())), soft_wrap=True)
    # markup=False: names and reasons may contain square brackets, which rich would interpret.
    for layer in analysis.layers:
        if layer.status == "failed":
            console.print(f"failed: {visible(layer.name)}: {visible(layer.reason)}")
