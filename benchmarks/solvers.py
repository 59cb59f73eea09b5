"""Eigenvalues of one window by every way that was considered: speed and accuracy.

Times are relative to the way spectail goes: the product W W^T and ``symmetric_eigenvalues`` on
stacks in float64, a thread per core with one BLAS thread each. Every other way gets the same
windows and threads. ``numpy float64`` and ``torch float64`` are ``eigvalsh`` of these libraries
with its defaults. ``top half`` and ``top tenth`` are partial spectra: the tridiagonal form costs
the same whatever is asked of it. ``two-stage`` is LAPACK's dsyevd_2stage of SciPy's own OpenBLAS,
where that exports it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray

from benchmarks.common import clock, paired
from spectail.core.spectra import symmetric_eigenvalues
from spectail.core.threads import single_threaded

SIZES = {64: 64, 192: 32, 576: 6, 1024: 2, 2000: 1}
"""Side of the window: windows per thread and round."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=3)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Ratios and largest errors (relative to the largest eigenvalue) by window size."""
    sizes = {32: 4} if options.quick else SIZES
    # torch and MKL count threads per thread: a new one begins with all cores.
    one = ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))
    with single_threaded(), one as pool:
        return {
            str(side): _compare(side, count, options.rounds, pool) for side, count in sizes.items()
        }


def _compare(side: int, count: int, rounds: int, pool: ThreadPoolExecutor) -> dict[str, Any]:
    rng = np.random.default_rng(side)
    stacks = [
        rng.standard_normal((count, side, side)).astype(np.float32)
        for _ in range(os.cpu_count() or 1)
    ]
    exact = [
        np.linalg.svd(stack.astype(np.float64), compute_uv=False)[:, ::-1] ** 2 for stack in stacks
    ]
    ways = _ways(side)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    errors: dict[str, float] = {}
    for way in ways.values():  # libraries load kernels and claim memory when they are first called
        way(stacks[0][:1])
    for _ in range(rounds):
        for name, way in ways.items():
            took: dict[str, float] = {}
            with clock(took, "all"):
                found = list(pool.map(way, stacks))
            seconds[name].append(took["all"])
            gaps = [
                np.abs(f - e[:, -f.shape[1] :]).max() / e.max()
                for f, e in zip(found, exact, strict=True)
            ]
            errors[name] = float(max(gaps))
    ours = seconds["ours"]
    return {
        name: {"time / ours": paired(took, ours), "error": errors[name]}
        for name, took in seconds.items()
    }


def _ways(side: int) -> dict[str, Callable[[NDArray[Any]], NDArray[Any]]]:
    ways = {
        "ours": lambda w: symmetric_eigenvalues(_grams(w.astype(np.float64))),
        "numpy float64": lambda w: np.linalg.eigvalsh(_grams(w.astype(np.float64))),
        "svdvals float32": lambda w: (
            torch.linalg.svdvals(torch.from_numpy(w)).flip(-1).numpy() ** 2
        ),
        "svdvals float64": lambda w: (
            torch.linalg.svdvals(torch.from_numpy(w).double()).flip(-1).numpy() ** 2
        ),
        "torch float64": lambda w: torch.linalg.eigvalsh(
            _torch_grams(torch.from_numpy(w).double())
        ).numpy(),
        "torch float32": lambda w: torch.linalg.eigvalsh(_torch_grams(torch.from_numpy(w))).numpy(),
        "top half": lambda w: _top(w, side // 2),
        "top tenth": lambda w: _top(w, side // 10),
    }
    if (routine := _two_stage_routine()) is not None:
        ways["two-stage"] = lambda w: np.stack(
            [_two_stage(routine, g) for g in _grams(w.astype(np.float64))]
        )
    return ways


def _grams(windows: NDArray[Any]) -> NDArray[Any]:
    return np.stack([window @ window.T for window in windows])


def _torch_grams(windows: torch.Tensor) -> torch.Tensor:
    return windows @ windows.mT


def _top(windows: NDArray[Any], count: int) -> NDArray[Any]:
    side = windows.shape[1]
    return np.stack(
        [
            scipy.linalg.eigvalsh(
                gram, subset_by_index=[side - count, side - 1], check_finite=False
            )
            for gram in _grams(windows.astype(np.float64))
        ]
    )


def _two_stage_routine() -> Any:
    for path in sorted((Path(scipy.__file__).parent.parent / "scipy.libs").glob("*openblas*")):
        routine = getattr(ctypes.CDLL(str(path)), "scipy_dsyevd_2stage_", None)
        if routine is not None:
            return routine
    return None


def _two_stage(routine: Any, gram: NDArray[Any]) -> NDArray[Any]:
    side = ctypes.c_int(gram.shape[0])
    info, values = ctypes.c_int(), np.empty(gram.shape[0])
    work, whole = np.empty(1), np.empty(1, dtype=np.int32)
    for size in (-1, None):
        if size is None:
            work, whole = np.empty(int(work[0])), np.empty(int(whole[0]), dtype=np.int32)
        lengths = ctypes.c_int(size or work.size), ctypes.c_int(size or whole.size)
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (gram, values, work, whole)]
        letters = ctypes.c_char_p(b"N"), ctypes.c_char_p(b"L")
        routine(
            *letters, ctypes.byref(side), pointers[0], ctypes.byref(side), pointers[1], pointers[2],
            ctypes.byref(lengths[0]), pointers[3], ctypes.byref(lengths[1]), ctypes.byref(info),
            ctypes.c_size_t(1), ctypes.c_size_t(1),
        )  # fmt: skip
    if info.value:
        raise RuntimeError(f"dsyevd_2stage gave info {info.value}")
    return values
