"""Single layers: spectail, the published procedure and LAPACK's symmetric solver alone.

All get the same windows. Each side has a process of its own. ``plain`` runs one SVD per window and
a Python loop over xmin. ``solver`` gets the Gram matrices ready-made and only calls eigvalsh, one
window per core at a time, each on one BLAS thread: no procedure that needs these eigenvalues of
these windows in that precision can be faster with that library. Where the windows are many and
large, plain and solver take a few of them and their time is scaled up; the result says so.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import spectail as st
from benchmarks import plain
from benchmarks.common import Outcome, Side, clock, paired, run_sides
from benchmarks.weights import made
from spectail.core.cutoffs import parse_cutoff
from spectail.core.spectra import numerical_zeros, window_eigenvalues
from spectail.core.tails import fit_from
from spectail.core.windows import Window, parse_placement
from spectail.measuring.planning import make_plan

CUTOFFS = ("median", "peak", "ks")
KINDS = ("q", "k", "v", "o", "gate", "up", "down")
TIMED_SCAN = 1e8
"""Values that a timed scan of the plain loop looks at; a longer one tries one
xmin in several and is scaled up."""
COMPARED = 12_000
"""Eigenvalues on which alphas are compared: the first windows, so that
the plain scan takes seconds."""
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Case:
    """What is measured, and in which windows.

    Either the layers of the demo's block 15, side by side, or one made matrix.
    """

    shape: tuple[int, int] | None = None
    """None: the demo's seven layers in the windows of the default preset."""
    window: int | None = None
    """Short side; None: what the default preset gives this matrix alone."""
    placement: str = "tile"
    few: int | None = None
    """Windows that plain and solver measure, scaled up to all; None: all."""
    tail_fits: tuple[str, ...] = CUTOFFS
    """Cutoffs for which ``tail_fit`` is timed too: all of it, error bar included,
    null known from the call before."""
    warm_ups: int = 1


CASES = {
    "demo": Case(),
    "1024": Case((1024, 1024)),
    "1024_grid": Case((1024, 1024), 512, "grid:10", few=24, tail_fits=("median",)),
    "2048_grid": Case((2048, 2048), 1000, "grid:10", few=12, tail_fits=()),
    "4096_grid": Case((4096, 4096), 2000, "grid:7", few=2, tail_fits=(), warm_ups=0),
}
QUICK = {"quick": Case((96, 128), 64, "grid:3", few=4)}


@dataclass(frozen=True)
class Cut:
    """One matrix and its corners.

    ``few`` are those that slow sides measure, ``compared`` those for alphas.
    """

    matrix: Tensor
    window: Window
    corners: list[tuple[int, int]]
    few: list[tuple[int, int]]
    compared: list[tuple[int, int]]


def cuts(case: Case) -> dict[str, Cut]:
    """The matrices of a case by label."""
    if case.shape is not None:
        matrix = made(*case.shape)
        side = case.window or min(*case.shape, 1024)
        return {"layer": _cut(matrix, side, case)}
    plan = make_plan("demo", spec=st.presets.FARMS)
    layers = {layer.kind: layer for layer in plan.layers if layer.block == 15}
    return {kind: _cut(layers[kind].read()[0], int(plan.run.window or 0), case) for kind in KINDS}


def _cut(matrix: Tensor, side: int, case: Case) -> Cut:
    window = Window(side, side)
    corners = parse_placement(case.placement).positions(matrix.shape[0], matrix.shape[1], window)
    few = corners[: case.few]
    return Cut(matrix, window, corners, few, few[: max(1, COMPARED // side)])


class Spectail:
    """spectail's functions as they are."""

    def __init__(self, case: Case) -> None:
        self.case, self.cuts = case, cuts(case)
        for cut in self.cuts.values():
            self.pooled(cut, cut.corners[:1])

    def run(self) -> dict[str, float]:
        """Eigenvalues, each fit, and ``tail_fit`` as a whole."""
        seconds: dict[str, float] = {}
        for label, cut in self.cuts.items():
            with clock(seconds, f"{label}|eigenvalues"):
                pooled = self.pooled(cut, cut.corners)
            for cutoff in CUTOFFS:
                with clock(seconds, f"{label}|fit {cutoff}"):
                    fit_from(pooled, parse_cutoff(cutoff).start(pooled))
            for cutoff in self.case.tail_fits:
                spec = st.Spec(window=min(cut.window), placement=self.case.placement, cutoff=cutoff)
                with clock(seconds, f"{label}|tail_fit {cutoff}"):
                    st.tail_fit(cut.matrix, spec)
        return seconds

    def facts(self) -> dict[str, Any]:
        """Alphas on the compared windows."""
        alphas = {}
        for label, cut in self.cuts.items():
            pooled = self.pooled(cut, cut.compared)
            alphas[label] = {
                c: fit_from(pooled, parse_cutoff(c).start(pooled)).alpha for c in CUTOFFS
            }
        return {"alphas": alphas}

    @staticmethod
    def pooled(cut: Cut, corners: list[tuple[int, int]]) -> np.ndarray:
        """The pooled eigenvalues as a tail fit gets them."""
        found = window_eigenvalues(cut.matrix[None], cut.window, corners)
        return np.sort(found[~numerical_zeros(found, cut.window)])


class Plain:
    """The published procedure in float32 or float64, on the quickest number of threads."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.cuts = {k: replace(cut, matrix=cut.matrix.to(dtype)) for k, cut in cuts(case).items()}
        self.tried: dict[str, int] = {}
        cut = next(iter(self.cuts.values()))
        pooled = plain.pooled_eigenvalues(cut.matrix, cut.window, cut.few[:1])
        self.threads = {
            "eigenvalues": plain.quickest_threads(
                lambda: plain.pooled_eigenvalues(cut.matrix, cut.window, cut.few[:1])
            ),
            "fit": plain.quickest_threads(
                lambda: plain.fit(_stretched(pooled, self._size(cut)), "ks", every=1000)
            ),
        }

    def run(self) -> dict[str, float]:
        """Eigenvalues and each fit, scaled up where only a part was done."""
        seconds: dict[str, float] = {}
        for label, cut in self.cuts.items():
            few: dict[str, float] = {}
            torch.set_num_threads(self.threads["eigenvalues"])
            with clock(few, "eigenvalues"):
                pooled = plain.pooled_eigenvalues(cut.matrix, cut.window, cut.few)
            seconds[f"{label}|eigenvalues"] = few["eigenvalues"] * len(cut.corners) / len(cut.few)
            torch.set_num_threads(self.threads["fit"])
            pooled = _stretched(pooled, self._size(cut))
            for cutoff in CUTOFFS:
                seconds[f"{label}|fit {cutoff}"] = self._fit(pooled, cutoff)
        return seconds

    def _fit(self, pooled: Tensor, cutoff: str) -> float:
        every = plain.every_within(TIMED_SCAN, pooled, plain.candidates(pooled, cutoff))
        self.tried[cutoff] = max(every, self.tried.get(cutoff, 1))
        seconds: dict[str, float] = {}
        with clock(seconds, "fit"):
            plain.fit(pooled, cutoff, every=every)
        return seconds["fit"] * every

    @staticmethod
    def _size(cut: Cut) -> int:
        return len(cut.corners) * min(cut.window)

    def facts(self) -> dict[str, Any]:
        """Alphas on the compared windows, and what was scaled up."""
        alphas = {}
        for label, cut in self.cuts.items():
            pooled = plain.pooled_eigenvalues(cut.matrix, cut.window, cut.compared)
            alphas[label] = {cutoff: plain.fit(pooled, cutoff).alpha for cutoff in CUTOFFS}
        scaled = {
            f"fit {c}": f"one xmin in {every}, scaled up"
            for c, every in self.tried.items()
            if every > 1
        }
        return {
            "alphas": alphas,
            "threads": self.threads,
            "extrapolated": scaled | _few_windows(self.cuts),
        }


class Solver:
    """eigvalsh of ready-made Gram matrices by numpy's and torch's LAPACK.

    A thread per core, one BLAS thread each.
    """

    def __init__(self, case: Case) -> None:
        torch.set_num_threads(1)
        self.cuts = cuts(case)
        self.grams = {
            label: [_gram(cut, corner) for corner in cut.few] for label, cut in self.cuts.items()
        }
        for gram in (grams[0] for grams in self.grams.values()):
            np.linalg.eigvalsh(gram.numpy()), torch.linalg.eigvalsh(gram)

    def run(self) -> dict[str, float]:
        """Seconds of each library and precision, scaled up where only a few windows were done."""
        seconds: dict[str, float] = {}
        for label, grams in self.grams.items():
            scale = len(self.cuts[label].corners) / len(grams)
            for dtype in (torch.float64, torch.float32):
                tensors = _stacks([gram.to(dtype) for gram in grams])
                arrays = [tensor.numpy() for tensor in tensors]
                precision = str(dtype).removeprefix("torch.")
                seconds[f"{label}|numpy {precision}"] = scale * _on_all_cores(
                    np.linalg.eigvalsh, arrays
                )
                seconds[f"{label}|torch {precision}"] = scale * _on_all_cores(
                    torch.linalg.eigvalsh, tensors
                )
        return seconds

    def facts(self) -> dict[str, Any]:
        """What was scaled up."""
        return {"extrapolated": _few_windows(self.cuts)}


def _gram(cut: Cut, corner: tuple[int, int]) -> Tensor:
    top, left = corner
    window = cut.matrix[top : top + cut.window.rows, left : left + cut.window.cols].double()
    return window @ window.mT


def _stacks(grams: list[Tensor]) -> list[Tensor]:
    """The matrices in stacks, two for every core.

    Single small calls would wait for Python's lock.
    """
    size = max(1, len(grams) // (2 * (os.cpu_count() or 1)))
    return [torch.stack(grams[i : i + size]) for i in range(0, len(grams), size)]


def _on_all_cores(solve: Callable[[Any], Any], matrices: list[Any]) -> float:
    seconds: dict[str, float] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool, clock(seconds, "all"):
        list(pool.map(solve, matrices))
    return seconds["all"]


def _few_windows(cut: dict[str, Cut]) -> dict[str, str]:
    few = {len(c.few) for c in cut.values() if len(c.few) < len(c.corners)}
    if not few:
        return {}
    return {
        "eigenvalues": (
            f"{max(few)} windows, scaled up; the fit gets their spectrum, interpolated to full size"
        )
    }


def _stretched(pooled: Tensor, size: int) -> Tensor:
    """The spectrum of a few windows as that of more: its quantiles, interpolated."""
    if len(pooled) == size:
        return pooled
    places = np.linspace(0, 1, len(pooled))
    return torch.from_numpy(np.interp(np.linspace(0, 1, size), places, pooled.numpy())).to(
        pooled.dtype
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--case", action="append", choices=CASES, help="may be repeated (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=3)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every chosen case; a case that measures few windows is one round long."""
    chosen = QUICK if options.quick else {name: CASES[name] for name in options.case or CASES}
    return {
        name: _run_case(case, options.rounds if case.warm_ups else 1)
        for name, case in chosen.items()
    }


def _run_case(case: Case, rounds: int) -> dict[str, Any]:
    outcomes = run_sides(
        {
            "spectail": Side(Spectail, (case,), warm_ups=case.warm_ups),
            "plain float32": Side(Plain, (case, torch.float32), warm_ups=0),
            "plain float64": Side(Plain, (case, torch.float64), warm_ups=0),
            "solver": Side(Solver, (case,), ONE_THREAD, warm_ups=0),
        },
        rounds,
    )
    cut = cuts(case)
    labels = [*cut, "together"] if len(cut) > 1 else list(cut)
    return {
        "layers": {
            label: {
                "shape": list(c.matrix.shape),
                "window": list(c.window),
                "windows": len(c.corners),
                "compared": len(c.compared),
            }
            for label, c in cut.items()
        },
        "sides": {name: outcome.to_dict() for name, outcome in outcomes.items()},
        "ratios": {
            label: _ratios(outcomes, list(cut) if label == "together" else [label])
            for label in labels
        },
        "alpha_difference": {
            f"{name} - spectail": _alpha_difference(outcomes[name], outcomes["spectail"])
            for name in ("plain float32", "plain float64")
        },
    }


def _ratios(outcomes: dict[str, Outcome], labels: list[str]) -> dict[str, Any]:
    """Plain over spectail by phase, and spectail's eigenvalues over each solver."""

    def times(side: str, phases: Iterable[str]) -> list[float]:
        series = [
            outcomes[side].seconds[f"{label}|{phase}"] for label in labels for phase in phases
        ]
        return [sum(moment) for moment in zip(*series, strict=True)]

    eigenvalues = times("spectail", ["eigenvalues"])
    found = {}
    for side in ("plain float32", "plain float64"):
        found[f"eigenvalues: {side} / spectail"] = paired(times(side, ["eigenvalues"]), eigenvalues)
        for c in CUTOFFS:
            both = ("eigenvalues", f"fit {c}")
            found[f"with fit {c}: {side} / spectail"] = paired(
                times(side, both), times("spectail", both)
            )
            if f"{labels[0]}|tail_fit {c}" in outcomes["spectail"].seconds:
                whole = times("spectail", [f"tail_fit {c}"])
                found[f"with fit {c}: {side} / spectail's tail_fit with its error bar"] = paired(
                    times(side, both), whole
                )
    alone = [
        phase.split("|")[1]
        for phase in outcomes["solver"].seconds
        if phase.startswith(f"{labels[0]}|")
    ]
    return found | {
        f"eigenvalues: spectail / {s} alone": paired(eigenvalues, times("solver", [s]))
        for s in alone
    }


def _alpha_difference(other: Outcome, own: Outcome) -> dict[str, dict[str, float]]:
    """By layer and cutoff, on the compared windows."""
    return {
        label: {c: alpha - own.facts["alphas"][label][c] for c, alpha in alphas.items()}
        for label, alphas in other.facts["alphas"].items()
    }
