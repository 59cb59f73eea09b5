"""A GPU against 1, 2 and all threads of the CPU: one window, layers of a 7B, the whole command.

The solver alone: eigenvalues of a Gram matrix in float64, on the GPU one and several at a time.
Layers: weights of LLaMA-7B's shapes in bfloat16, measured as ``analyze`` measures them with its
defaults. The command: ``spectail analyze`` on a checkpoint of two such layers, as a fresh process,
with ``--device cuda`` and ``--device cpu``. Each number is the least of a few runs. The CPU solves
a few windows of a layer, and its time is scaled up to all of them: ``extrapolated`` says so.
Without a GPU only the CPU's numbers are there.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from threadpoolctl import threadpool_limits

from benchmarks.command import SPECTAIL
from benchmarks.common import run_command
from benchmarks.weights import made
from spectail.core.farms import Farms
from spectail.core.spec import Spec
from spectail.core.spectra import window_eigenvalues
from spectail.core.threads import spread_over
from spectail.core.windows import Tile, Window

SIDES = (256, 1024, 4096)
"""Sides of the windows that the solvers are timed on: 4096 is a whole matrix of a 7B."""
SHAPES = {"q_proj": (4096, 4096), "up_proj": (11008, 4096)}
SHARE = 4
"""Windows that the CPU solves of a layer, for each of its threads."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--skip-command", action="store_true", help="solvers and layers alone")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All three comparisons; a quick run takes tiny matrices."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    sides = (64,) if options.quick else SIDES
    shapes = {"q_proj": (192, 192), "up_proj": (320, 192)} if options.quick else SHAPES
    weights = {name: made(*shape, name=name).bfloat16() for name, shape in shapes.items()}
    found: dict[str, Any] = {
        "gpu": gpu,
        "solvers": {str(side): _solvers(side, gpu is not None) for side in sides},
        "layers": {name: _layer(matrix, gpu is not None) for name, matrix in weights.items()},
    }
    if not options.skip_command:
        found["command"] = _command(weights, gpu is not None)
    return found


def _threads() -> list[int]:
    """Return the numbers of threads that are compared."""
    return sorted({1, 2, os.cpu_count() or 1} & set(range(1, (os.cpu_count() or 1) + 1)))


def _least(
    work: Callable[[], Any], runs: int = 3, *, gpu: bool = False, warm: bool = True
) -> float:
    """Return the seconds of the fastest of some runs, after a warm-up if ``warm``."""
    if warm:
        work()
    seconds = []
    for _ in range(runs):
        if gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return float(f"{min(seconds):.4g}")


def _solvers(side: int, gpu: bool) -> dict[str, Any]:
    """Return seconds for one Gram matrix: symmetric solver and SVD, on the GPU and on threads."""
    matrix = np.random.default_rng(0).standard_normal((side, side))
    gram = matrix @ matrix.T
    found: dict[str, Any] = {}
    for threads in _threads():
        # One thread takes 40 seconds for the largest: its time is of no use beside the others.
        if side > 2048 and threads == 1:
            continue
        with threadpool_limits(threads):
            found[f"eigvalsh, {threads} threads"] = _least(
                lambda: np.linalg.eigvalsh(gram), 1, warm=side <= 2048
            )
    if gpu:
        on_gpu, whole = (torch.from_numpy(x).cuda() for x in (gram, matrix))
        found["eigvalsh, gpu"] = _least(lambda: torch.linalg.eigvalsh(on_gpu), gpu=True)
        if side <= 1024:
            stack = on_gpu.expand(8, side, side).contiguous()
            eight = _least(lambda: torch.linalg.eigvalsh(stack), 1, gpu=True)
            found["eigvalsh, gpu, each of 8"] = float(f"{eight / 8:.4g}")
            found["svdvals, gpu"] = _least(lambda: torch.linalg.svdvals(whole), 1, gpu=True)
        # float32 is no alternative (see precision.py), but says what double precision costs.
        single = on_gpu.float()
        found["eigvalsh, gpu, float32"] = _least(lambda: torch.linalg.eigvalsh(single), gpu=True)
    return found


def _layer(matrix: torch.Tensor, gpu: bool) -> dict[str, Any]:
    """Return seconds for all windows of a layer, and how many there are."""
    side = min(1024, min(matrix.shape) // 3)
    window = Window(side, side)
    positions = Tile().positions(matrix.shape[0], matrix.shape[1], window)
    matrices = matrix[None]
    found: dict[str, Any] = {"windows": len(positions), "side": side}
    for threads in _threads():
        some = positions[: SHARE * threads]

        def solve(threads: int = threads, some: Any = some) -> None:
            with spread_over(threads):
                window_eigenvalues(matrices, window, some)

        seconds = _least(solve, 1) * len(positions) / len(some)
        found[f"windows, {threads} threads"] = float(f"{seconds:.4g}")
    found["extrapolated"] = len(positions) > SHARE
    if gpu:
        on_gpu = matrices.cuda()
        found["windows, gpu"] = _least(
            lambda: window_eigenvalues(on_gpu, window, positions), gpu=True
        )
        found["all of the layer, gpu"] = _least(
            lambda: Farms().measure(
                matrices.cuda(), Spec(), side, convolution=False, error_bar=True
            ),
            gpu=True,
        )
    return found


def _command(weights: Mapping[str, torch.Tensor], gpu: bool) -> dict[str, Any]:
    """Return seconds of the whole command on a checkpoint of these layers, and what they give."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.safetensors"
        save_file({f"model.layers.0.{n}.weight": w for n, w in weights.items()}, path)
        for device in ("cuda", "cpu") if gpu else ("cpu",):
            out = str(Path(folder) / device)
            command = [*SPECTAIL, "analyze", str(path), "--device", device, "--out", out, "--quiet"]
            found[f"{device}, seconds"] = float(f"{run_command(command).seconds:.4g}")
            table = pd.read_csv(Path(out) / "layers.csv")
            found[f"{device}, alphas"] = table["alpha"].tolist()
    return found
