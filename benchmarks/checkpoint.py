"""Write a checkpoint of LLaMA-7B's shape, and measure how spectail analyzes it.

The measurement gives time and memory. 32 blocks are 13.5 GB on disk in bfloat16. The weights are
made layer by layer, with spectra that differ by kind and depth (``benchmarks/weights.py``). Without
``--measure`` the checkpoint is only written.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.command import SPECTAIL
from benchmarks.common import run_command
from benchmarks.weights import LLAMA, write_checkpoint

TINY = {"hidden_size": 128, "intermediate_size": 320, "vocab_size": 300, "num_attention_heads": 4}
"""What a quick run writes."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="where to write; one that holds a checkpoint is used as it is"
    )
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint in --folder")
    parser.add_argument("--measure", action="store_true", help="run spectail analyze on it")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Write, measure, remove again unless it is to be kept."""
    if options.keep and not options.folder:
        raise SystemExit("--keep needs --folder: where should the checkpoint stay?")
    config = TINY if options.quick else LLAMA
    blocks = 2 if options.quick else options.blocks
    result: dict[str, Any] = {"blocks": blocks, "config": config, "seed": options.seed}
    with tempfile.TemporaryDirectory(dir=options.folder and options.folder.parent) as scratch:
        folder = options.folder or Path(scratch) / "checkpoint"
        if options.folder and (folder / "model.safetensors.index.json").exists():
            _require_same(folder, config, blocks)
        else:
            started = time.perf_counter()
            write_checkpoint(folder, blocks, config=config, seed=options.seed)
            result["seconds to write"] = round(time.perf_counter() - started, 1)
        result["megabytes"] = round(
            sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 2**20, 1
        )
        if options.measure or options.quick:
            result["analyze"] = measure(folder, Path(scratch) / "out")
        if options.folder and not options.keep:
            _remove(folder)
    return result


def measure(folder: Path, out: Path) -> dict[str, Any]:
    """``spectail analyze`` with its defaults as a fresh process.

    Returns time, memory, windows and the seconds by kind of layer.
    """
    took = run_command(
        [*SPECTAIL, "analyze", str(folder), "--out", str(out), "--quiet"], every=0.05
    )
    layers = json.loads((out / "analysis.json").read_text())["layers"]
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for layer in layers:
        by_kind[layer["kind"]].append(layer)
    return {
        "seconds": round(took.seconds, 1),
        "peak_megabytes": took.peak_megabytes,
        "peak_anonymous_megabytes": took.peak_anonymous_megabytes,
        "largest_layer_megabytes_in_float32": round(
            max(layer["numel"] for layer in layers) * 4 / 2**20, 1
        ),
        "layers": len(layers),
        "layers_not_ok": [layer["name"] for layer in layers if layer["status"] != "ok"],
        "windows": sum(layer["n_windows"] for layer in layers),
        "window": sorted({(layer["window_rows"], layer["window_cols"]) for layer in layers}),
        "by_kind": {kind: _summary(rows) for kind, rows in by_kind.items()},
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    alphas = [row["alpha"] for row in rows if row["alpha"] is not None]
    return {
        "layers": len(rows),
        "windows": sum(row["n_windows"] for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 2),
        "alpha": [round(x, 3) for x in (min(alphas), max(alphas))] if alphas else None,
    }


def _require_same(folder: Path, config: dict[str, int], blocks: int) -> None:
    stored = json.loads((folder / "config.json").read_text())
    wanted = config | {"num_hidden_layers": blocks}
    if any(stored.get(key) != value for key, value in wanted.items()):
        raise SystemExit("the folder holds another checkpoint; name an empty one or remove it")


def _remove(folder: Path) -> None:
    """Take away the files that this script writes, and the folder if nothing else is in it."""
    for file in (
        *folder.glob("model-*-of-*.safetensors"),
        folder / "model.safetensors.index.json",
        folder / "config.json",
    ):
        file.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
