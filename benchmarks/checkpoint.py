"""Write a checkpoint of LLaMA-7B's shape, and measure how spectail analyzes it.

The measurement gives time and memory of a run of all windows and of few, and how far their alphas
are apart. 32 blocks are 13.5 GB on disk in bfloat16. The weights are made layer by layer, with
spectra that differ by kind and depth (``benchmarks/weights.py``). Without ``--measure`` the
checkpoint is only written. Of a checkpoint of Llama-2-70B's shape three blocks are written and
measured; time and bytes of the whole are computed from them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import spectail as st
from benchmarks.command import SPECTAIL
from benchmarks.common import run_command
from benchmarks.weights import LLAMA, LLAMA_70B, write_checkpoint, write_sample
from spectail.core.tolerance import FIRST
from spectail.measuring.cost import Cost, estimate
from spectail.measuring.reading import FEWEST_BANDS
from spectail.models.open import open_source
from spectail.models.source import Layer, Source

TINY = {"hidden_size": 128, "intermediate_size": 320, "vocab_size": 300, "num_attention_heads": 4}
"""What a quick run writes."""
TOLERANCE = 0.01
RECOMMENDED = ("--tolerance", str(TOLERANCE))
"""What the README recommends for large models."""
SMALLER = "512"
"""Half the common window of these models, tried beside it."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="where to write; one that holds a checkpoint is used as it is"
    )
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint in --folder")
    parser.add_argument("--measure", action="store_true", help="run spectail analyze on it")
    parser.add_argument("--few-only", action="store_true", help="leave out the run of all windows")
    parser.add_argument("--skip-70b", action="store_true", help="leave out the sample of a 70B")


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
            result |= _all_runs(
                folder,
                Path(scratch),
                smaller="32" if options.quick else SMALLER,
                few_only=options.few_only,
            )
        if options.folder and not options.keep:
            _remove(folder)
    if (options.measure or options.quick) and not options.skip_70b:
        with tempfile.TemporaryDirectory(dir=options.folder and options.folder.parent) as scratch:
            result["70b"] = samples(Path(scratch), quick=options.quick)
    return result


def _all_runs(folder: Path, scratch: Path, *, smaller: str, few_only: bool) -> dict[str, Any]:
    """Runs on one checkpoint, that of all windows last, and how far the others are from it."""
    runs: dict[str, tuple[str, ...]] = {
        "tolerance, smaller window": (*RECOMMENDED, "--window", smaller),
        "tolerance": RECOMMENDED,
    }
    if not few_only:
        runs["analyze"] = ()
    found: dict[str, Any] = {}
    alphas: dict[str, dict[str, float]] = {}
    for key, words in runs.items():
        out = scratch / f"out-{len(found)}"
        found[key] = measure(folder, out, words)
        alphas[key] = _alphas(out)
    if "analyze" in alphas:
        for key in runs.keys() - {"analyze"}:
            found[key] |= distance(alphas[key], alphas["analyze"])
    return found


def measure(folder: Path, out: Path, words: Sequence[str] = ()) -> dict[str, Any]:
    """``spectail analyze`` as a fresh process; ``words`` are further options.

    Returns time, memory, windows and the seconds by kind of layer.
    """
    took = run_command(
        [*SPECTAIL, "analyze", str(folder), "--out", str(out), "--quiet", *words], every=0.05
    )
    layers = _layers(out)
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for layer in layers:
        by_kind[layer["kind"]].append(layer)
    return {
        "options": list(words),
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


def distance(few: dict[str, float], every: dict[str, float]) -> dict[str, Any]:
    """How far the alphas of few windows are from those of all of them, layer by layer."""
    names = sorted(every)
    a, b = (np.array([alphas[name] for name in names]) for alphas in (few, every))
    change = np.abs(a / b - 1)
    return {
        "rank_correlation": round(float(spearmanr(a, b).statistic), 4),
        "within_1_percent": round(float(np.mean(change <= 0.01)), 4),
        "change": {
            name: round(float(np.quantile(change, share)), 5)
            for name, share in (("median", 0.5), ("90 %", 0.9), ("most", 1.0))
        },
    }


def samples(folder: Path, *, quick: bool) -> list[dict[str, Any]]:
    """Two runs on a checkpoint of Llama-2-70B's shape, of which three blocks have values."""
    config, blocks = (TINY, 6) if quick else (LLAMA_70B, 80)
    written = sorted({0, blocks // 2, blocks - 1})
    size = write_sample(folder / "checkpoint", blocks, written, config=config)
    started = time.perf_counter()
    source = open_source(folder / "checkpoint")
    facts = {
        "blocks": blocks,
        "config": config,
        "layers": len(source.layers),
        "gigabytes": round(size / 1e9, 2),
        "seconds_to_open": round(time.perf_counter() - started, 2),
        "blocks_measured": written,
    }
    smaller = ("--window", "32" if quick else SMALLER)
    return [
        facts | _sample(folder, source, written, words)
        for words in (RECOMMENDED, (*RECOMMENDED, *smaller))
    ]


def _sample(
    folder: Path, source: Source, written: Sequence[int], options: Sequence[str]
) -> dict[str, Any]:
    """Measure the blocks that have values, and compute time and bytes of the whole.

    The cost of every layer by its shape (``spectail.measuring.cost``) says what share of the work
    these blocks are.
    """
    out = folder / f"out-{len(options)}"
    included = [word for block in written for word in ("--include", f"model.layers.{block}.*")]
    found = measure(folder / "checkpoint", out, [*options, *included])
    [(window, _)] = found["window"]
    spec = st.Spec(tolerance=TOLERANCE, window=window)
    costs = {layer.name: estimate(layer, spec, window) for layer in source.layers}
    whole = sum(costs.values(), Cost())
    measured = sum((costs[layer["name"]] for layer in _layers(out)), Cost())
    share = measured.seconds() / whole.seconds()
    return {
        "measured": found,
        "share_of_the_cost_measured": round(share, 5),
        "computed": {
            "minutes": round(found["seconds"] / share / 60, 1),
            "gigabytes_read": round(whole.bytes / 1e9, 2),
            "gigabytes_fetched": round(
                sum(_fetched(layer, window, costs[layer.name].bytes) for layer in source.layers)
                / 1e9,
                2,
            ),
        },
    }


def _fetched(layer: Layer, window: int, size: int) -> float:
    """Bytes of a layer that are fetched over the network for the first windows of a tolerance."""
    bands = layer.rows // window
    return size if bands < FEWEST_BANDS else size * FIRST * window / layer.rows


def _layers(out: Path) -> list[dict[str, Any]]:
    """The records of a run."""
    records: list[dict[str, Any]] = json.loads((out / "analysis.json").read_text())["layers"]
    return records


def _alphas(out: Path) -> dict[str, float]:
    return {layer["name"]: layer["alpha"] for layer in _layers(out) if layer["status"] == "ok"}


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
