"""python -m experiments.error_bars [--quick]: calibrate alpha_se.

It is done on many laws, shapes and cutoffs, and on real layers. For every law, shape and cutoff:
independent matrices, alpha and alpha_se of each; the ratio is the mean alpha_se over the standard
deviation of alpha between draws. 1 is perfect, below 1 too sure. Real layers are cut into pieces of
equal shape that share no weight; the ratio is the root of the mean alpha_se^2 over the mean
variance between the pieces of a layer. Pieces of one layer may differ more than draws of one law:
that ratio may only be too small.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

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
from spectail.models.open import open_source

HERE = Path(__file__).parent
SHAPES = [
    ((256, 256), 64),
    ((192, 576), 192),
    ((200, 200), 192),
    ((512, 768), 128),
    ((128, 1024), 128),
]
"""Square, wide, awkward (a window that nearly fills the matrix), tiles that overlap, very wide."""
CUTOFFS = ("median", "top:0.1", "ks")
PIECE = (192, 576)
"""Pieces of SmolLM2's gate, up and (turned) down projections and of its embedding."""


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, then write results.json and the table in docs/error-bars.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="few draws, small shapes: does it run?"
    )
    parser.add_argument("--fresh", action="store_true", help="do not go on with an unfinished run")
    parser.add_argument(
        "--seconds", type=float, help="stop after about this long; run again to go on"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first draw")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args(arguments)
    draws = 8 if options.quick else 100
    settings = {"draws": draws, "seed": options.seed, "quick": options.quick}
    journal = Journal.open(
        WORK / f"error_bars{'_quick' * options.quick}.jsonl", settings, fresh=options.fresh
    )
    if not run_steps(journal, _steps(settings), seconds=options.seconds):
        return
    save_json(
        options.out, {"environment": environment(), "settings": settings, "results": journal.done}
    )
    if not options.quick:
        fill_page(
            ROOT / "docs" / "error-bars.md",
            {"calibration": _table(journal.done), "real": _real(journal.done)},
        )


def _steps(settings: dict[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    shapes = SHAPES[1:2] if settings["quick"] else SHAPES
    for law in LAWS:
        for shape, window in shapes:
            for cutoff in CUTOFFS:
                key = f"{law} | {shape[0]} x {shape[1]} / {window} | {cutoff}"
                yield (
                    key,
                    partial(calibrate, law, shape, window, cutoff, settings),
                )
    for cutoff in CUTOFFS:
        yield f"real | {cutoff}", partial(calibrate_real, cutoff, quick=settings["quick"])


def calibrate(
    law: str, shape: tuple[int, int], window: int, cutoff: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """Mean error bar over the spread of alpha, for draws of one law."""
    count = settings["draws"] if cutoff != "ks" else max(8, settings["draws"] * 3 // 10)
    spec = st.Spec(window=window, cutoff=cutoff)
    fits = [
        st.tail_fit(LAWS[law](np.random.default_rng(settings["seed"] + i), shape), spec)
        for i in range(count)
    ]
    alphas, errors = np.array([fit.alpha for fit in fits]), np.array([fit.alpha_se for fit in fits])
    spread = float(alphas.std(ddof=1))
    return {
        "draws": count,
        "alpha": float(alphas.mean()),
        "spread": spread,
        "alpha_se": float(errors.mean()),
        "alpha_se_sd": float(errors.std(ddof=1)),
        "ratio": float(errors.mean()) / spread,
        "ratio_se": float(errors.mean()) / spread / math.sqrt(2 * (count - 1)),
    }


def calibrate_real(cutoff: str, *, quick: bool) -> dict[str, Any]:
    """The same for pieces of the layers of SmolLM2-135M, by kind."""
    spec = st.Spec(window=PIECE[0], cutoff=cutoff)
    found: dict[str, list[tuple[float, float, int]]] = {}
    for layer in open_source("demo").layers:
        if layer.kind not in ("gate", "up", "down", "embedding") or (quick and layer.block != 0):
            continue
        weights = layer.read()[0]
        weights = weights.mT if layer.kind == "down" else weights
        pieces = [
            weights[top : top + PIECE[0]]
            for top in range(0, weights.shape[0] - PIECE[0] + 1, PIECE[0])
        ]
        fits = [st.tail_fit(piece, spec) for piece in pieces[:64]]
        variance = float(np.var([fit.alpha for fit in fits], ddof=1))
        found.setdefault(layer.kind, []).append(
            (variance, float(np.mean([fit.alpha_se**2 for fit in fits])), len(fits))
        )
    return {
        kind: {
            "layers": len(rows),
            "pieces": sum(row[2] for row in rows),
            "spread": math.sqrt(np.mean([row[0] for row in rows])),
            "alpha_se": math.sqrt(np.mean([row[1] for row in rows])),
            "ratio": math.sqrt(
                np.mean([row[1] for row in rows]) / np.mean([row[0] for row in rows])
            ),
        }
        for kind, rows in found.items()
    }


def _table(done: dict[str, Any]) -> str:
    rows = []
    for law in LAWS:
        for shape, window in SHAPES:
            cells = [
                done[f"{law} | {shape[0]} x {shape[1]} / {window} | {cutoff}"] for cutoff in CUTOFFS
            ]
            name = f"{law}, {shape[0]} x {shape[1]}, windows of {window}"
            rows.append(
                [name, *(f"{cell['ratio']:.2f} ± {cell['ratio_se']:.2f}" for cell in cells)]
            )
    return markdown_table(["law, shape, window", *CUTOFFS], rows)


def _real(done: dict[str, Any]) -> str:
    kinds = done[f"real | {CUTOFFS[0]}"]
    rows = [
        [f"{kind}: {cell['pieces']} pieces of {cell['layers']} layer{'s' * (cell['layers'] > 1)}"]
        + [f"{done[f'real | {cutoff}'][kind]['ratio']:.2f}" for cutoff in CUTOFFS]
        for kind, cell in kinds.items()
    ]
    return markdown_table([f"SmolLM2-135M, pieces of {PIECE[0]} x {PIECE[1]}", *CUTOFFS], rows)


if __name__ == "__main__":
    main()
