"""The fit alone: spectail against the plain loop over every xmin, by cutoff.

The spectra are of three kinds and sizes. ``gaussian``: windows of independent entries (Marchenko
and Pastur). ``pareto``: an exact power law throughout, where no xmin stands out and a search can
rule out least. ``smollm2``: pooled windows of a layer of the demo model. Where the plain loop would
take minutes it tries one xmin in several, evenly spread, and is scaled up; the result says so.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import plain
from benchmarks.common import Outcome, Side, paired, run_sides, steady
from spectail.core.cutoffs import parse_cutoff
from spectail.core.spectra import window_eigenvalues
from spectail.core.tails import fit_from
from spectail.core.windows import Grid, Window
from spectail.errors import SourceError
from spectail.models.open import open_source

CUTOFFS = ("median", "top:0.1", "peak", "ks")
SPECTRA = ("gaussian", "pareto", "smollm2")
SIZES = (10_000, 100_000, 450_000)
SIDE = 192
"""Side of the windows."""
TIMED_SCAN = 1e9
"""Values that a plain scan looks at, some 20 seconds long; a longer one is sampled,
unless ``--whole`` asks for it."""


def spectrum(kind: str, size: int) -> np.ndarray:
    """``size`` ascending eigenvalues.

    SourceError for ``smollm2`` where the demo model is not installed.
    """
    rng = np.random.default_rng(0)
    if kind == "pareto":
        return np.sort((1 - rng.random(size)) ** (-1 / 2.0))
    per_side = math.ceil(math.sqrt(size / SIDE))
    window = Window(SIDE, SIDE)
    if kind == "gaussian":
        matrices = torch.from_numpy(rng.standard_normal((per_side**2, SIDE, SIDE)))
        found = window_eigenvalues(matrices, window, [(0, 0)])
    else:
        layer = next(x for x in open_source("demo").layers if x.block == 15 and x.kind == "down")
        found = window_eigenvalues(
            layer.read(), window, Grid(per_side).positions(layer.rows, layer.cols, window)
        )
    pooled = np.sort(found, axis=None)
    evenly: np.ndarray = pooled[np.linspace(0, pooled.size - 1, size).astype(int)]
    return evenly


class Spectail:
    """spectail's cutoffs and fit."""

    def __init__(self, eigenvalues: np.ndarray) -> None:
        self.eigenvalues = eigenvalues

    def run(self) -> dict[str, float]:
        """Seconds by cutoff."""
        return {cutoff: steady(partial(self.alpha, cutoff)) for cutoff in CUTOFFS}

    def alpha(self, cutoff: str) -> float:
        """Alpha by one cutoff."""
        return fit_from(self.eigenvalues, parse_cutoff(cutoff).start(self.eigenvalues)).alpha

    def facts(self) -> dict[str, Any]:
        """Alpha by cutoff."""
        return {"alpha": {cutoff: self.alpha(cutoff) for cutoff in CUTOFFS}}


class Plain:
    """The plain loop in float64 on the quickest number of threads.

    ``facts`` gives what it found.
    """

    def __init__(self, eigenvalues: np.ndarray, longest: float) -> None:
        self.eigenvalues = torch.from_numpy(eigenvalues)
        scan = range(0, len(eigenvalues) - 1, max(1, len(eigenvalues) // 20))
        self.threads = plain.quickest_threads(lambda: plain.scan(self.eigenvalues, scan))
        torch.set_num_threads(self.threads)
        tried = {cutoff: plain.candidates(self.eigenvalues, cutoff) for cutoff in CUTOFFS}
        self.every = {
            cutoff: plain.every_within(longest, self.eigenvalues, xmin)
            for cutoff, xmin in tried.items()
        }
        self.found: dict[str, float | None] = {}

    def run(self) -> dict[str, float]:
        """Seconds by cutoff, scaled up where only some xmin were tried."""
        return {
            cutoff: every * steady(partial(self._fit, cutoff))
            for cutoff, every in self.every.items()
        }

    def _fit(self, cutoff: str) -> None:
        every = self.every[cutoff]
        alpha = plain.fit(self.eigenvalues, cutoff, every=every).alpha
        self.found[cutoff] = alpha if every == 1 else None

    def facts(self) -> dict[str, Any]:
        """Alpha by cutoff, None where the scan was sampled."""
        sampled = {
            c: f"one xmin in {every}, scaled up" for c, every in self.every.items() if every > 1
        }
        return {"alpha": self.found, "threads": self.threads, "extrapolated": sampled}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument(
        "--spectrum", action="append", choices=SPECTRA, help="may be repeated (default: all)"
    )
    parser.add_argument(
        "--size", action="append", type=int, help=f"may be repeated (default: {SIZES})"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--whole", action="store_true", help="never sample the plain loop (hours at 450,000)"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every chosen spectrum in every size."""
    longest = math.inf if options.whole else TIMED_SCAN
    sizes = [1000] if options.quick else options.size or SIZES
    return {
        f"{kind} {size}": _run_case(kind, size, options.rounds, longest)
        for kind in options.spectrum or SPECTRA
        for size in sizes
    }


def _run_case(kind: str, size: int, rounds: int, longest: float) -> dict[str, Any]:
    try:
        eigenvalues = spectrum(kind, size)
    except SourceError as error:
        return {"not measured": str(error)}
    outcomes = run_sides(
        {
            "spectail": Side(Spectail, (eigenvalues,)),
            "plain": Side(Plain, (eigenvalues, longest), warm_ups=0),
        },
        rounds,
    )
    slow, fast = outcomes["plain"], outcomes["spectail"]
    return {
        "sides": {name: outcome.to_dict() for name, outcome in outcomes.items()},
        "ratios": {
            f"{c}: plain / spectail": paired(slow.seconds[c], fast.seconds[c]) for c in CUTOFFS
        },
        "alpha_difference": {c: _difference(slow, fast, c) for c in CUTOFFS},
    }


def _difference(slow: Outcome, fast: Outcome, cutoff: str) -> float | None:
    found = slow.facts["alpha"][cutoff]
    return None if found is None else found - fast.facts["alpha"][cutoff]
