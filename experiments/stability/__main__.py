"""``python -m experiments.stability``: measure every real model that is installed.

Then write the table, the plot and the docs page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import ROOT, WORK, Journal, publish, run_steps
from experiments.stability.catalogue import CATALOGUE, chosen_layers, find
from experiments.stability.draw import draw, tables
from experiments.stability.measure import Settings, measure_layer
from experiments.stability.summary import middle, summarise
from spectail.basics.files import write_text
from spectail.models.open import open_source
from spectail.models.source import Layer, Source

HERE = Path(__file__).parent
SUBSAMPLED = "SmolLM2-135M"
"""The one model with so many equal blocks that a part of them is enough."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; 0 when all is done, 3 when ``--seconds`` ran out before."""
    options = _options(arguments)
    settings = (
        Settings(every=options.every) if not options.quick else Settings(sides=(16, 24), every=1)
    )
    found, missing = (_toy(), []) if options.quick else _models(options.models)
    for line in missing:
        print(f"not installed, left out: {line}")
    if not found:
        print(
            f"none of the models is installed; see {(HERE / 'README.md').relative_to(ROOT)}",
            file=sys.stderr,
        )
        return 2
    layers = {
        name: chosen_layers(source, settings.every if name == SUBSAMPLED else 1)
        for name, source in found.items()
    }
    journal = Journal.open(
        options.work / "stability.jsonl", settings.to_dict(), fresh=options.fresh
    )
    if not run_steps(journal, _steps(layers, settings), seconds=options.seconds):
        return 3
    results: dict[str, Any] = {
        "settings": settings.to_dict(),
        "not installed": missing,
        "models": {name: _collect(name, journal, layers[name]) for name in layers},
    }
    results["summary"] = summarise(results["models"])
    results["models"] = {name: _slim(model) for name, model in results["models"].items()}
    draw(results["summary"], options.image)
    parts = tables(results)
    publish(options, results, parts)
    write_text(options.out / "tables.md", "\n\n".join(parts.values()) + "\n")
    return 0


def common_side(layers: Sequence[Layer]) -> int:
    """The window that ``common`` gives these layers."""
    return min(min(layer.rows, layer.cols) for layer in layers)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.stability", description=__doc__)
    parser.add_argument(
        "--models", type=Path, nargs="*", default=[], help="folders that pip --target filled"
    )
    parser.add_argument(
        "--every", type=int, default=3, help=f"blocks of {SUBSAMPLED} to measure: every N-th"
    )
    parser.add_argument(
        "--seconds", type=float, help="stop after so long; the same command goes on (exit code 3)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget what an earlier run has measured"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a toy model, seconds; the docs stay as they are"
    )
    parser.add_argument("--out", type=Path, help="folder of results.json and tables.md")
    options = parser.parse_args(arguments)
    quick = (options.out or WORK) / "quick" if options.quick else None
    options.work = quick or WORK
    options.image = quick / "stability.png" if quick else ROOT / "docs" / "images" / "stability.png"
    options.out = quick or options.out or HERE
    options.page = None if quick else ROOT / "docs" / "stability.md"
    return options


def _models(folders: Sequence[Path]) -> tuple[dict[str, Source], list[str]]:
    """The models found, opened, and a line for each that is not there."""
    paths = {model: find(model, folders) for model in CATALOGUE}
    missing = [
        f"{model.name} (pip package {model.package})"
        for model, path in paths.items()
        if path is None
    ]
    return {
        model.name: open_source(path) for model, path in paths.items() if path is not None
    }, missing


def _toy() -> dict[str, Source]:
    """A model of ten small layers.

    From one to the next, the scales of the rows lie further apart.
    """
    rng = np.random.default_rng(0)
    shapes = [(96, 64), (64, 64)] * 5
    state = {
        f"layers.{i}.weight": rng.standard_normal(shape)
        * np.exp(0.15 * i * rng.standard_normal((shape[0], 1)))
        for i, shape in enumerate(shapes)
    }
    return {"toy": open_source(state)}


def _steps(
    layers: dict[str, list[Layer]], settings: Settings
) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, chosen in layers.items():
        for layer in chosen:
            yield (
                f"{name}: {layer.name}",
                partial(measure_layer, layer, common_side(chosen), settings),
            )


def _collect(name: str, journal: Journal, layers: list[Layer]) -> dict[str, Any]:
    """What was measured on a model: a list per quantity, one entry per layer."""
    rows = [journal.done[f"{name}: {layer.name}"] for layer in layers]
    sides = sorted({side for row in rows for side in row["sides"]}, key=int)
    return {
        "common": common_side(layers),
        "layers": [layer.name for layer in layers],
        "shapes": [f"{row['rows']}x{row['cols']}x{row['n_matrices']}" for row in rows],
        "sides": {side: _columns([row["sides"].get(side, {}) for row in rows]) for side in sides},
    }


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Nested dicts of numbers, one per layer -> one nested dict of lists.

    None where a layer has no number.
    """
    keys = dict.fromkeys(key for row in rows for key in row)
    nested = {key for key in keys if any(isinstance(row.get(key), dict) for row in rows)}
    return {
        key: _columns([row.get(key) or {} for row in rows])
        if key in nested
        else [_short(row.get(key)) for row in rows]
        for key in keys
    }


def _short(value: float | None) -> float | None:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _slim(model: dict[str, Any]) -> dict[str, Any]:
    """The same with the median over layers in place of every layer's seconds."""
    sides = {
        side: found | {"seconds": {what: middle(times) for what, times in found["seconds"].items()}}
        for side, found in model["sides"].items()
    }
    return model | {"sides": sides}


if __name__ == "__main__":
    sys.exit(main())
