"""``spectail analyze`` with several sources: the checkpoints of one training run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from spectail.basics.addresses import without_secrets
from spectail.basics.files import refuse_foreign, write_text
from spectail.basics.texts import first_names, plural
from spectail.cli.options import print_json
from spectail.cli.runner import Runner
from spectail.errors import RunError
from spectail.measuring.engines import is_elsewhere
from spectail.measuring.planning import make_plan
from spectail.models.formats.fingerprint import no_fingerprints
from spectail.report.page import page_mark
from spectail.report.trajectory_page import EYEBROW, trajectory_html
from spectail.results.trajectory import Trajectory, require_same_windows

CURVES = "curves.html"
"""The page of curves over the checkpoints."""


def analyze_checkpoints(runner: Runner, sources: list[str], out: Path | None) -> int:
    """Measure several checkpoints, each in a folder of its own, and draw alpha over the steps."""
    if runner.shard or out is None:
        what = "--shard takes one model" if runner.shard else "several checkpoints need --out DIR"
        raise RunError(f"{what}: each has a folder of its own in it, beside {CURVES}")
    refuse_foreign(out / CURVES, page_mark(EYEBROW), RunError)
    by_label = labelled(sources)
    # A name mistyped, or another window, costs no measurement of the others.
    with no_fingerprints():
        planned = {
            label: make_plan(source, **runner.settings, elsewhere=is_elsewhere(runner.measure)).run
            for label, source in by_label.items()
        }
    first = next(iter(planned))
    for label, run in planned.items():
        require_same_windows(label, run, first, planned[first])
    runs = {}
    for label, source in by_label.items():
        runner.console.print(f"{label}:")
        runs[label] = runner(source, out / label)
    found = Trajectory.of(runs)
    try:
        write_text(out / CURVES, trajectory_html(found))
    finally:
        if found.note:
            runner.console.print(f"note: {found.note}", soft_wrap=True)
        if left := found.left_out:
            names = f"{plural(len(left), 'layer')} without an alpha in every checkpoint"
            runner.console.print(
                f"left out of the curves: {names}: {first_names(left, 4)}", soft_wrap=True
            )
        runner.console.print(f"mean alpha {found.drift(found.mean())}")
        if runner.json:
            print_json(found.to_dict())
    runner.console.print(f"curves: {out / CURVES}")
    return 1 if any(x.status == "failed" for run in runs.values() for x in run.layers) else 0


def labelled(sources: Sequence[str]) -> dict[str, str]:
    """Return the sources by the shortest ends of their paths that tell them apart.

    >>> labelled(["runs/step-10/model.safetensors", "runs/step-20/model.safetensors"])
    {'step-10-model.safetensors': 'runs/step-10/model.safetensors', \
'step-20-model.safetensors': 'runs/step-20/model.safetensors'}
    """
    # The user and the query of an address are secrets, which no name of a folder may hold.
    shown = [without_secrets(source) for source in sources]
    parts = [[part for part in re.split(r"[/\\\\]", source) if part] for source in shown]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        # A label is the name of a folder: nothing but letters, digits and a few signs.
        labels = [re.sub(r"[^\w.=+-]", "_", "-".join(part[-depth:])).lstrip(".") for part in parts]
        if len(set(labels)) == len(sources) and all(labels):
            return dict(zip(labels, sources, strict=True))
    raise RunError(
        "a checkpoint is given twice; give each once (the query of an address does not count)"
    )
