"""python -m experiments.window_size [--quick]: alpha of tiles by their size, and of few of them.

Every layer is tiled by windows of five sizes: 1/4 to all of the short side of the real models'
layers, and 256 to 1024 on drawn layers of LLaMA-7B's shapes. Alpha of each size is compared with
alpha of the largest one: does it order the layers in the same way? Two halves of the tiles (the
black and the white squares of a chessboard) say how stable alpha is, and processor time says what
it costs. From the same eigenvalues come the windows that a tolerance takes, and what alpha they
give. Models whose packages are not installed are left out (``--packages FOLDER`` names a folder to
look into as well).
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
from scipy.stats import spearmanr
from torch import Tensor

import spectail as st
from benchmarks.weights import LLAMA, made, shapes_of_block
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
from experiments.stability.catalogue import CATALOGUE, Model, find
from spectail.core.cutoffs import Median
from spectail.core.jackknife import alpha_standard_error, tail_alpha
from spectail.core.spectra import numerical_zeros, window_eigenvalues
from spectail.core.tolerance import enough_windows
from spectail.core.windows import Tile, Window
from spectail.models.open import open_source
from spectail.models.source import Layer

HERE = Path(__file__).parent
FRACTIONS = (0.25, 0.375, 0.5, 0.75, 1.0)
TOLERANCES = (0.01, 0.02)
REAL = {"SmolLM2-135M": 576, "all-MiniLM-L6": 384, "AntiBERTy": 512}
"""Real models, and the short side of the layers that are measured: attention outputs, MLPs."""
EVERY = 3
"""Every third block of a real model is measured."""
BLOCKS, SIDE, DEPTH = (0, 15, 31), 1024, 31
DRAWN = "7B, drawn"


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, then write results.json and the tables in docs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two small drawn blocks: does it run?")
    parser.add_argument("--fresh", action="store_true", help="do not go on with an unfinished run")
    parser.add_argument("--seconds", type=float, help="stop after about this long")
    parser.add_argument("--packages", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    options = parser.parse_args(arguments)
    settings = {"every": EVERY, "tolerances": TOLERANCES, "quick": options.quick}
    journal = Journal.open(
        WORK / f"window_size{'_quick' * options.quick}.jsonl", settings, fresh=options.fresh
    )
    # One thread: processor time then says what a window costs, whatever else the machine does.
    torch.set_num_threads(1)
    steps = _quick_steps() if options.quick else _steps(options.packages)
    if not run_steps(journal, steps, seconds=options.seconds):
        return
    pages = {
        "large-models": {"window-size": size_table(journal.done)},
        "tolerance": {"few-tiles": few_table(journal.done)},
    }
    save_json(
        options.out, {"environment": environment(), "settings": settings, "results": journal.done}
    )
    for page, tables in pages.items():
        if not options.quick:
            fill_page(ROOT / "docs" / f"{page}.md", tables)
        print("\n\n".join(tables.values()))


def _steps(folders: Sequence[Path]) -> Iterator[tuple[str, Callable[[], Any]]]:
    for model in CATALOGUE:
        if model.name in REAL and (path := find(model, folders)):
            yield from _real_steps(model, path)
    for block in BLOCKS:
        for name, shape in shapes_of_block(LLAMA).items():
            full = f"model.layers.{block}.{name}"
            yield f"{DRAWN} | {full}", partial(_drawn, full, shape, block / DEPTH, SIDE)


def _real_steps(model: Model, path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    side = REAL[model.name]
    for layer in open_source(path).layers:
        fits = min(layer.rows, layer.cols) == side and layer.kind != "embedding"
        if fits and not layer.problem and layer.block is not None and layer.block % EVERY == 0:
            yield f"{model.name} | {layer.name}", partial(_real, layer, side)


def _quick_steps() -> Iterator[tuple[str, Callable[[], Any]]]:
    small = {"hidden_size": 256, "intermediate_size": 384}
    for block in (0, 1):
        for name, shape in shapes_of_block(small).items():
            yield f"{DRAWN} | {block} {name}", partial(_drawn, name, shape, float(block), 64)


def _real(layer: Layer, side: int) -> dict[str, Any]:
    return by_size(layer.read()[0], side)


def _drawn(name: str, shape: tuple[int, int], depth: float, side: int) -> dict[str, Any]:
    return by_size(made(*shape, name=name, depth=depth, dtype=torch.bfloat16).float(), side)


def by_size(matrix: Tensor, largest: int) -> dict[str, Any]:
    """Measure a matrix in windows of every size."""
    sides = [int(largest * fraction) for fraction in FRACTIONS]
    return {str(side): _measured(matrix, side) for side in sides}


def _measured(matrix: Tensor, side: int) -> dict[str, Any]:
    """Alpha of all tiles, of both halves of them, and of those that each tolerance takes."""
    window = Window(side, side)
    positions = Tile().positions(matrix.shape[0], matrix.shape[1], window)
    started = time.process_time()
    found = window_eigenvalues(matrix[None], window, positions)
    seconds = time.process_time() - started
    tops, lefts = (sorted({place[axis] for place in positions}) for axis in (0, 1))
    black = np.indices((len(tops), len(lefts))).sum(axis=0).ravel() % 2 == 0
    grid = found.reshape(len(tops), len(lefts), *found.shape[1:])
    bars = min(grid.shape[:2]) >= 3
    return {
        "windows": len(positions),
        "processor_seconds": seconds,
        "alpha": _alpha(found, window),
        "halves": [_alpha(found[half], window) for half in (black, ~black) if half.any()],
        "alpha_se": alpha_standard_error(grid, numerical_zeros(grid, window), Median())
        if bars
        else None,
        "few": {str(share): _few(found, positions, window, share) for share in TOLERANCES},
    }


def _few(
    found: np.ndarray, positions: list[tuple[int, int]], window: Window, tolerance: float
) -> dict[str, Any]:
    """Windows that a tolerance takes from eigenvalues that are known already."""
    known = dict(zip(positions, found, strict=True))
    taken, few = enough_windows(
        positions,
        window,
        lambda places: np.stack([known[place] for place in places]),
        lambda values: numerical_zeros(values, window),
        st.Spec(tolerance=tolerance),
    )
    return {"windows": len(taken), "alpha": _alpha(few, window)}


def _alpha(values: np.ndarray, window: Window) -> float:
    return tail_alpha(np.sort(values[~numerical_zeros(values, window)]), Median())


def _models(done: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The measured layers of every model."""
    models: dict[str, list[dict[str, Any]]] = {}
    for key, value in done.items():
        models.setdefault(key.split(" | ")[0], []).append(value)
    return models


def size_table(done: dict[str, Any]) -> str:
    """How well each size orders the layers, how stable it is and what it costs."""
    rows = []
    for model, layers in _models(done).items():
        sides = list(layers[0])
        largest = np.array([layer[sides[-1]]["alpha"] for layer in layers])
        dearest = sum(layer[sides[-1]]["processor_seconds"] for layer in layers)
        for side in sides:
            cells = [layer[side] for layer in layers]
            alphas = np.array([cell["alpha"] for cell in cells])
            change = np.abs(alphas / largest - 1)
            seconds = sum(cell["processor_seconds"] for cell in cells)
            rows.append(
                [
                    f"{model}, {len(layers)} layers: {side}",
                    f"{spearmanr(alphas, largest).statistic:.3f}",
                    f"{100 * np.median(change):.2f} % ({100 * change.max():.2f} %)",
                    *_stability(cells, alphas),
                    f"{seconds / dearest:.2f}",
                ]
            )
    head = [
        "model, layers: window",
        "order as in the largest window",
        "alpha differs by: median (most)",
        "order in two halves of the windows",
        "halves differ by: median",
        "spread of layers / noise",
        "time",
    ]
    return markdown_table(head, rows)


def _stability(cells: Sequence[dict[str, Any]], alphas: np.ndarray) -> list[str]:
    """Rank correlation of two halves, how far they differ, and how far layers do beside that."""
    if any(len(cell["halves"]) < 2 for cell in cells):
        return ["-", "-", "-"]
    first, second = np.transpose([cell["halves"] for cell in cells])
    # The mean of two halves that differ by d has a standard deviation of about d / 2.
    apart = np.abs(first - second)
    noise = np.sqrt(np.mean(apart**2)) / 2
    return [
        f"{spearmanr(first, second).statistic:.3f}",
        f"{100 * np.median(apart / alphas):.2f} %",
        f"{alphas.std() / noise:.0f}",
    ]


def few_table(done: dict[str, Any]) -> str:
    """What few windows give beside all of them."""
    rows = []
    for model, layers in _models(done).items():
        for side in layers[0]:
            for share in map(str, TOLERANCES):
                cells = [layer[side] for layer in layers if layer[side]["windows"] > 1]
                if not cells:
                    continue
                every = np.array([cell["alpha"] for cell in cells])
                few = np.array([cell["few"][share]["alpha"] for cell in cells])
                counts = [cell["few"][share]["windows"] for cell in cells]
                change = np.abs(few / every - 1)
                rows.append(
                    [
                        f"{model}: {side}, {100 * float(share):g} %",
                        f"{sum(counts)} of {sum(cell['windows'] for cell in cells)}",
                        f"{np.median(counts):.0f}",
                        f"{100 * np.mean(change <= float(share)):.0f} %",
                        f"{100 * np.quantile(change, 0.9):.2f} % ({100 * change.max():.2f} %)",
                        f"{spearmanr(few, every).statistic:.3f}",
                    ]
                )
    head = [
        "model: window, tolerance",
        "windows measured",
        "a layer, median",
        "layers within the tolerance",
        "change of alpha: 90th percentile (most)",
        "rank correlation",
    ]
    return markdown_table(head, rows)


if __name__ == "__main__":
    main()
