"""What a run costs on many machines: a model of the cost, and times against the number of workers.

The rates of ``spectail.measuring.cost`` are fitted to the processor time of single layers on one
core; the error is that on layers which took no part in the fit. Workers are processes with one
thread: shards of one run, and Ray on simulated nodes, which are more than this machine has cores.
So their processor time is measured: that of the busiest is the time that a run takes where each
has a core of its own. What follows for models that are too large to
be measured here is computed from the fitted rates and marked as computed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from scipy.optimize import nnls

from benchmarks.command import SPECTAIL
from benchmarks.model_shapes import MODELS, Shape, layers_of
from benchmarks.weights import made
from spectail.core.measure import common_window
from spectail.core.spec import Spec
from spectail.core.threads import spread_over
from spectail.measuring.cost import MEASURED, Cost, Rates, estimate
from spectail.measuring.layer import measure_layer
from spectail.measuring.planning import make_plan
from spectail.measuring.shards import split

SHAPES = [
    (256, 256),
    (192, 576),
    (600, 300),
    (1024, 1024),
    (900, 700),
    (2048, 1024),
    (1500, 4000),
    (2048, 2048),
    (3000, 2500),
    (4096, 4096),
    (2048, 7168),
    (11008, 4096),
]
"""Shapes of the layers that are timed."""
SPECS = {
    "window 192": Spec(window=192),
    "window 512": Spec(window=512),
    "window 1024": Spec(window=1024),
    "window 384, tolerance 1 %": Spec(window=384, tolerance=0.01),
    "window 1024, tolerance 1 %": Spec(window=1024, tolerance=0.01),
}
TILES, FEW = Spec(), Spec(tolerance=0.01)
CORES = 64
"""Cores of a node in the computed table."""
NODES = (1, 4, 16, 64)
WORKERS = (1, 2, 4, 8)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--no-workers", action="store_true", help="the fit and the models, anew")
    only.add_argument("--only-workers", action="store_true", help="the workers, anew")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Fit the rates, compute the models, time the workers."""
    results = _earlier(options)
    if not options.only_workers:
        results |= _fit(quick=options.quick)
    if not options.no_workers:
        results["workers"] = _workers(quick=options.quick)
    return results


def _earlier(options: argparse.Namespace) -> dict[str, Any]:
    """Return the result that is there, of which a run of one half keeps the other."""
    path = options.result or Path(__file__).parent / "results" / "scaling.json"
    if not (options.no_workers or options.only_workers) or not path.exists():
        return {}
    results: dict[str, Any] = json.loads(path.read_text())["results"]
    return results


def _fit(*, quick: bool) -> dict[str, Any]:
    """Fit the rates and compute the models by them."""
    shapes = [(128, 96), (96, 200), (256, 128)] if quick else SHAPES
    specs = {"window 64": Spec(window=64)} if quick else SPECS
    timed = [found for name, spec in specs.items() for found in _timed(shapes, name, spec)]
    rates, error = _fitted(timed)
    return {
        "rates": asdict(rates),
        "rates in use": asdict(MEASURED),
        "error of the fit": error,
        "layers": [row for row, _ in timed],
        "computed": {
            name: _computed(shape, rates)
            for name, shape in MODELS.items()
            if not (quick and shape.experts)
        },
    }


def _timed(
    shapes: list[tuple[int, int]], name: str, spec: Spec
) -> list[tuple[dict[str, Any], Cost]]:
    """Measure a layer of each shape on one core; return its processor time and its cost."""
    found = []
    for rows, cols in shapes:
        if min(rows, cols) < int(spec.window):
            continue
        plan = make_plan({"layer.weight": made(rows, cols, dtype=torch.bfloat16)}, spec=spec)
        seconds = []
        with spread_over(1):
            for _ in range(3 if rows * cols < 2**22 else 2):
                # Processor time: other work on the machine counts less than it does for the clock.
                started = time.process_time()
                record = measure_layer(plan.layers[0], plan)
                seconds.append(time.process_time() - started)
                if record.status != "ok":
                    raise RuntimeError(f"a layer of {rows} x {cols} failed: {record.reason}")
        row = {
            "settings": name,
            "shape": [rows, cols],
            "seconds": round(min(seconds), 4),
            "windows": record.n_windows,
        }
        found.append(
            (row, estimate(plan.layers[0], spec, plan.run.window, expected=record.n_windows))
        )
    return found


def _features(cost: Cost) -> list[float]:
    """The amounts of work that the rates multiply, in the order of their fields."""
    return [
        cost.layers,
        cost.weights,
        cost.reread,
        cost.windows,
        cost.tridiagonal,
        cost.flops,
    ]


def _fitted(timed: list[tuple[dict[str, Any], Cost]]) -> tuple[Rates, dict[str, float]]:
    """Fit non-negative rates to the relative error; estimate it on layers left out in turn."""
    seconds = np.array([row["seconds"] for row, _ in timed])
    # Dividing by the time makes every layer count alike, and the residual a relative error.
    scaled = np.array([_features(cost) for _, cost in timed]) / seconds[:, None]
    # Columns of very different size would stop the solver early.
    size = scaled.max(axis=0)
    solved, _ = nnls(scaled / size, np.ones(len(seconds)))
    errors = []
    for fold in range(4):
        left_out = np.arange(len(seconds)) % 4 == fold
        others, _ = nnls(scaled[~left_out] / size, np.ones(int((~left_out).sum())))
        errors += list(np.abs(scaled[left_out] / size @ others - 1))
    for (row, _), estimated in zip(timed, scaled / size @ solved * seconds, strict=True):
        row["estimated"] = round(float(estimated), 4)
    rates = dict(zip((f.name for f in fields(Rates)), solved / size, strict=True))
    return Rates(**{name: float(f"{rate:.3g}") for name, rate in rates.items()}), {
        "median": round(float(np.median(errors)), 3),
        "90 %": round(float(np.quantile(errors, 0.9)), 3),
        "layers": len(errors),
    }


def _workers(*, quick: bool) -> dict[str, Any]:
    """Measure the same model in one process, as shards, and on nodes of a Ray cluster."""
    sides, count = ((96, 128), 4) if quick else ((512, 1024), 192)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model.safetensors"
        # Every third layer is four times as large, so that the split has something to balance.
        rows = [sides[0] * (2 if i % 3 == 0 else 1) for i in range(count)]
        cols = [sides[1] * (2 if i % 3 == 0 else 1) for i in range(count)]
        layers = {f"layers.{i}.weight": made(rows[i], cols[i], seed=i) for i in range(count)}
        save_file(layers, model)
        for workers in (1, 2) if quick else WORKERS:
            found[f"shards, {workers}"] = _shards(model, Path(scratch) / f"s{workers}", workers)
        for nodes in () if quick else WORKERS[:3]:
            found[f"ray, {nodes}"] = _ray(model, Path(scratch) / f"r{nodes}", nodes)
    return found


def _shards(model: Path, out: Path, workers: int) -> dict[str, float]:
    """Run all shards, one thread each, and merge them; return their processor time."""
    command = [*SPECTAIL, "analyze", str(model), "--out", str(out), "--quiet", "--shard"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*command, f"{i + 1}/{workers}"], env=one_thread) for i in range(workers)
    ]
    seconds = []
    for process in running:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError("a shard failed; its own error is printed above")
        seconds.append(usage.ru_utime + usage.ru_stime)
    subprocess.run([*SPECTAIL, "merge", str(out), "--quiet"], check=True)
    return {"busiest": round(max(seconds), 2), "all": round(sum(seconds), 2)}


def _ray(model: Path, out: Path, nodes: int) -> dict[str, float]:
    """Run on a cluster of nodes of one CPU; return the processor time of their workers."""
    code = f"""
import psutil, ray, spectail as st
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 0}})
for _ in range({nodes}):
    cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
st.analyze({str(model)!r}, out={str(out)!r}, engine="ray")
for process in psutil.process_iter(["cmdline", "cpu_times"]):
    if process.info["cmdline"] and process.info["cmdline"][0].startswith("ray::"):
        print("seconds", sum(process.info["cpu_times"][:2]))
"""
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    seconds = [float(line.split()[1]) for line in printed.splitlines() if line[:7] == "seconds"]
    return {"busiest": round(max(seconds), 2), "all": round(sum(seconds), 2)}


def _computed(shape: Shape, rates: Rates) -> dict[str, Any]:
    """Time and bytes of a model by its shapes: all tiles, and few windows."""
    layers = layers_of(shape)
    return {
        "weights": sum(layer.numel for layer in layers),
        "layers": len(layers),
        "window": common_window([(layer.rows, layer.cols) for layer in layers], TILES),
        "tiles": _cost_of(layers, TILES, rates),
        "tolerance 1 %": _cost_of(layers, FEW, rates),
    }


def _cost_of(layers: list[Any], spec: Spec, rates: Rates) -> dict[str, Any]:
    """Sum the cost of the layers, and the time on several nodes."""
    window = common_window([(layer.rows, layer.cols) for layer in layers], spec)
    costs: dict[tuple[int, int], Cost] = {}
    for layer in layers:
        if (layer.rows, layer.cols) not in costs:
            costs[layer.rows, layer.cols] = estimate(layer, spec, window)
    each = [costs[layer.rows, layer.cols] for layer in layers]
    seconds = [cost.seconds(rates) for cost in each]
    minutes = {}
    for nodes in NODES:
        loads = [sum(seconds[place] for place in shard) for shard in split(seconds, nodes)]
        minutes[str(nodes)] = float(f"{max(loads) / CORES / 60:.3g}")
    return {
        "windows": sum(cost.windows for cost in each),
        "core hours": float(f"{sum(seconds) / 3600:.3g}"),
        "gigabytes read": round(sum(cost.bytes for cost in each) / 1e9),
        "minutes by nodes": minutes,
        "largest layer, core minutes": float(f"{max(seconds) / 60:.3g}"),
        "gigabytes of memory, largest layer": round(max(cost.memory for cost in each) / 1e9, 1),
    }
