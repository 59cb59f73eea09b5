"""python -m experiments.tolerance [--quick]: alpha of a dense grid and with --tolerance.

The second comes from the windows that --tolerance takes. The setting of the FARMS paper for
language models: 15 x 15 windows (225), each about half as long as the matrix. On layers of
SmolLM2-135M (windows of half the short side) and on drawn matrices of two sizes; tolerance 1 %.
Large ones are measured by the smooth cutoffs alone: the others take nearly all windows, and hours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import spectail as st
from experiments.common import (
    ROOT,
    WORK,
    Journal,
    environment,
    fill_page,
    markdown_table,
    run_steps,
    save_json,
)
from experiments.ensembles import LAWS
from spectail.core.measure import FARMS
from spectail.core.spectra import numerical_zeros, window_eigenvalues
from spectail.core.tails import fit_from
from spectail.core.windows import Window, parse_placement
from spectail.models.open import open_source
from spectail.models.source import Layer

HERE = Path(__file__).parent
CUTOFFS = ("median", "top:0.1", "peak", "ks")
TOLERANCE = 0.01
SMOOTH = ("median", "top:0.1")
BLOCKS = (0, 10, 20, 29)
SIDES = (1024, 4096)
LARGE = 2048
"""From this side on only the smooth cutoffs are measured."""


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, then write results.json and the table in docs/tolerance.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="small matrices, a coarse grid: does it run?"
    )
    parser.add_argument("--fresh", action="store_true", help="do not go on with an unfinished run")
    parser.add_argument(
        "--seconds", type=float, help="stop after about this long; run again to go on"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--side", type=int, action="append", help=f"of the drawn matrices (default: {SIDES})"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args(arguments)
    sides, grid = ([96], "grid:5") if options.quick else (options.side or list(SIDES), "grid:15")
    settings = {"sides": sides, "placement": grid, "tolerance": TOLERANCE, "seed": options.seed}
    journal = Journal.open(
        WORK / f"tolerance{'_quick' * options.quick}.jsonl", settings, fresh=options.fresh
    )
    if not run_steps(
        journal, _steps(settings, () if options.quick else BLOCKS), seconds=options.seconds
    ):
        return
    save_json(
        options.out, {"environment": environment(), "settings": settings, "results": journal.done}
    )
    if not options.quick:
        fill_page(ROOT / "docs" / "tolerance.md", {"results": _table(journal.done, sides)})


def _steps(
    settings: dict[str, Any], blocks: tuple[int, ...]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    layers = (
        [layer for layer in open_source("demo").layers if layer.block in blocks] if blocks else []
    )
    for layer in layers:
        half = min(layer.rows, layer.cols) // 2
        yield (
            f"SmolLM2 | {layer.name}",
            partial(_real, layer, half, settings["placement"]),
        )
    for side in settings["sides"]:
        for law in LAWS:
            yield f"drawn {side} | {law}", partial(_drawn, law, side, settings)


def _real(layer: Layer, window: int, placement: str) -> dict[str, Any]:
    return compare(layer.read()[0], window, placement, CUTOFFS)


def _drawn(law: str, side: int, settings: dict[str, Any]) -> dict[str, Any]:
    values = LAWS[law](np.random.default_rng(settings["seed"]), (side, side))
    cutoffs = SMOOTH if side >= LARGE else CUTOFFS
    return compare(
        torch.from_numpy(values).float(), window_of(side), settings["placement"], cutoffs
    )


def window_of(side: int) -> int:
    """The window of a drawn matrix: 2000 in 4096."""
    return side * 2000 // 4096


def compare(matrix: Tensor, side: int, placement: str, cutoffs: Sequence[str]) -> dict[str, Any]:
    """Alpha of all windows and of those that the tolerance takes, for every cutoff."""
    window = Window(side, side)
    positions = parse_placement(placement).positions(matrix.shape[0], matrix.shape[1], window)
    started = time.perf_counter()
    everything = window_eigenvalues(matrix[None], window, positions)
    seconds = time.perf_counter() - started
    found: dict[str, Any] = {"windows": len(positions), "cutoffs": {}}
    for cutoff in cutoffs:
        spec = st.Spec(window=side, placement=placement, cutoff=cutoff, tolerance=TOLERANCE)
        started = time.perf_counter()
        taken, few = FARMS.solve(matrix[None], window, positions, spec)
        faster = seconds / (time.perf_counter() - started)
        whole, part = (_alpha(values, window, spec) for values in (everything, few))
        found["cutoffs"][cutoff] = {
            "alpha": whole,
            "alpha_few": part,
            "change": part / whole - 1,
            "windows": len(taken),
            "times_faster": faster,
        }
    return found


def _alpha(values: np.ndarray, window: Window, spec: st.Spec) -> float:
    pooled = np.sort(values[~numerical_zeros(values, window)])
    return fit_from(pooled, spec.cutoff.start(pooled)).alpha


def _table(done: dict[str, Any], sides: Sequence[int]) -> str:
    rows = []
    names = {"SmolLM2 |": "SmolLM2"}
    names |= {
        f"drawn {side} |": f"drawn, {side} x {side}, windows of {window_of(side)}" for side in sides
    }
    for source, shown in names.items():
        layers = [value for key, value in done.items() if key.startswith(source)]
        for cutoff in [
            cutoff for cutoff in CUTOFFS if all(cutoff in layer["cutoffs"] for layer in layers)
        ]:
            cells = [layer["cutoffs"][cutoff] for layer in layers]
            changes = np.abs([cell["change"] for cell in cells])
            counts = np.array([cell["windows"] for cell in cells])
            within = f"{int((changes <= TOLERANCE).sum())} of {len(cells)}"
            taken = f"{int(np.median(counts))} ({counts.min()} to {counts.max()})"
            faster = f"{np.median([cell['times_faster'] for cell in cells]):.0f}"
            rows.append(
                [f"{shown}: {cutoff}", taken, within, f"{100 * changes.max():.2f} %", faster]
            )
    head = [
        "matrices, cutoff",
        "windows taken of 225",
        "within 1 %",
        "largest change",
        "times faster (median)",
    ]
    return markdown_table(head, rows)


if __name__ == "__main__":
    main()
