"""The cost of measuring a layer, estimated from its shape before anything is read.

The estimate orders the tasks of an engine, balances the shards of a run and tells users what a run
will take. It depends on shapes and settings only, never on the machine, so every process that plans
the same run finds the same numbers. ``python -m benchmarks scaling`` fits the rates to measured
times and states the error of the fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from spectail.core.bands import BAND_ENTRIES
from spectail.core.measure import estimator_of, too_small
from spectail.core.spec import Spec
from spectail.core.windows import MIN_BANDS, Window, disjoint_bands
from spectail.errors import SpecError
from spectail.measuring.layer import Plan
from spectail.measuring.reading import banded_axis
from spectail.models.difference import Change
from spectail.models.source import Layer

PROCESS_BYTES = 400 * 2**20
"""Memory of a process that has imported torch and measures nothing."""
PRECISE_STEPS, ROUGH_STEPS = 30, 10
"""Typical steps of the iteration for the largest eigenvalue; with a tolerance it is rough."""
GRAM_SIDE = 1024
"""Short side from which that iteration reads the matrix in every step."""
EXPECTED_WINDOWS = 6
"""Windows that a layer needs with a tolerance of 1 %: the median of SmolLM2-135M, whose windows are
small (192). Windows of 1024 take 4, the least number."""
COMPLEX_FACTOR = 4
"""Real operations in one complex multiplication and addition, relative to real ones."""
SVD_FACTOR = 4
"""Operations of a singular value decomposition, relative to the symmetric solver."""


@dataclass(frozen=True)
class Rates:
    """Seconds that one core needs per unit of each kind of work."""

    layer: float
    """Per layer: to find it, to fit its tail and to write its row."""
    weight: float
    """Per weight: to read and convert it, and for the sums over the whole matrix."""
    reread: float
    """Per weight and step of the iteration for the largest eigenvalue of the whole matrix."""
    window: float
    """Per window: calls, independent of its size."""
    tridiagonal: float
    """Per squared side of a window: the eigenvalues of the tridiagonal matrix."""
    flop: float
    """Per floating-point operation of Gram matrices and of the reduction to tridiagonal form."""


MEASURED = Rates(
    layer=7.9e-4, weight=6.8e-9, reread=7.6e-11, window=8.4e-5, tridiagonal=2.4e-8, flop=3.4e-11
)
"""Fitted to the times of one core of a server CPU; see ``benchmarks/results/scaling.json``."""


@dataclass(frozen=True)
class Cost:
    """What it takes to measure one layer, or the sum over several."""

    layers: int = 0
    """Layers that are measured; skipped and unreadable ones cost nothing."""
    weights: int = 0
    reread: float = 0.0
    """Weights times steps of the iteration for the largest eigenvalue."""
    windows: int = 0
    """Windows whose eigenvalues are computed, those of the error bar included."""
    tridiagonal: float = 0.0
    """Sum of the squared sides of the windows."""
    flops: float = 0.0
    """Floating-point operations of Gram matrices and of their reduction to tridiagonal form."""
    bytes: int = 0
    """Bytes read from the source."""
    memory: int = 0
    """Peak memory in bytes of a process that measures the layer on one core; of a sum, the largest.
    """

    def seconds(self, rates: Rates = MEASURED) -> float:
        """Return the time on one core."""
        return (
            rates.layer * self.layers
            + rates.weight * self.weights
            + rates.reread * self.reread
            + rates.window * self.windows
            + rates.tridiagonal * self.tridiagonal
            + rates.flop * self.flops
        )

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.layers + other.layers,
            self.weights + other.weights,
            self.reread + other.reread,
            self.windows + other.windows,
            self.tridiagonal + other.tridiagonal,
            self.flops + other.flops,
            self.bytes + other.bytes,
            max(self.memory, other.memory),
        )


def estimate(
    layer: Layer,
    spec: Spec,
    window: int | None,
    *,
    full_spectrum: bool = False,
    traps: bool = False,
    expected: int = EXPECTED_WINDOWS,
) -> Cost:
    """Estimate the cost of a layer; ``window`` is the common window of the run.

    With ``traps`` its memory counts the shuffled copy; the time for them is left out. With a
    tolerance the number of windows is known only after measuring; ``expected`` is a guess.
    """
    if (
        layer.no_weight
        or layer.problem
        or too_small((layer.rows, layer.cols), spec, layer.n_matrices)
    ):
        return Cost()
    try:
        solved = _solved(layer, spec, window, expected)
    except SpecError:  # a window that does not fit: the layer is skipped
        return Cost()
    if full_spectrum and spec.window != "whole":
        solved.append((Window(layer.rows, layer.cols), 1))
    counts = [count * layer.n_matrices for _, count in solved]
    axis = banded_axis(layer, spec, window, whole=full_spectrum or traps)
    values = (
        _whole_bytes(layer, shuffled=traps)
        if axis is None
        else _band_bytes(layer, axis, [shape for shape, _ in solved])
    )
    return Cost(
        layers=1,
        weights=layer.numel,
        reread=_steps(layer, spec) * layer.numel,
        windows=sum(counts),
        tridiagonal=sum(
            n * float(min(shape)) ** 2 for n, (shape, _) in zip(counts, solved, strict=True)
        ),
        flops=sum(
            n * _flops(shape, layer, spec) for n, (shape, _) in zip(counts, solved, strict=True)
        ),
        bytes=layer.numel * item_bytes(layer.tensor.dtype),
        memory=PROCESS_BYTES + values + max(_window_bytes(shape, layer) for shape, _ in solved),
    )


def _steps(layer: Layer, spec: Spec) -> float:
    """Return how often the iteration for the largest eigenvalue reads the matrix.

    Small matrices have a dense solver, and up to GRAM_SIDE the iteration works on the Gram matrix,
    whose cost per weight grows with the side.
    """
    steps = PRECISE_STEPS if spec.tolerance is None else ROUGH_STEPS
    return steps * min(1.0, min(layer.rows, layer.cols) / GRAM_SIDE)


def _solved(
    layer: Layer, spec: Spec, window: int | None, expected: int
) -> list[tuple[Window, int]]:
    """Return the shapes of the windows to solve in each matrix, and how many there are of each."""
    shape, positions = estimator_of(spec).place((layer.rows, layer.cols), spec, window)
    few = spec.tolerance is not None
    solved = [(shape, min(len(positions), expected) if few else len(positions))]
    # A few windows out of many lie apart, and the error bar takes them.
    if few and len(positions) >= MIN_BANDS**2:
        return solved
    # The error bar solves disjoint windows of its own, unless those of the fit include them.
    smaller = spec.cutoff.error_window(shape, layer.rows, layer.cols)
    if min(smaller) < 2 or (smaller != shape and not spec.cutoff.any_window):
        return solved
    tops = disjoint_bands(layer.rows, smaller.rows)
    lefts = disjoint_bands(layer.cols, smaller.cols)
    known = set(positions) if smaller == shape else set()
    if any((top, left) not in known for top in tops for left in lefts):
        solved.append((smaller, len(tops) * len(lefts)))
    return solved


def _flops(window: Window, layer: Layer, spec: Spec) -> float:
    """Return the operations for the eigenvalues of one window."""
    short, long = sorted(window)
    factor = COMPLEX_FACTOR if layer.tensor.is_complex else 1
    if estimator_of(spec).exact_zeros:
        return float(factor * SVD_FACTOR * short * short * long)
    # Golub and Van Loan, Matrix Computations, 4th edition: 4/3 n^3 to reduce a symmetric matrix to
    # tridiagonal form. The product uses the symmetry.
    return factor * (short * short * long + 4 / 3 * short**3)


def _whole_bytes(layer: Layer, *, shuffled: bool) -> int:
    """Return the most memory that the matrices of a layer take while it is read whole."""
    item, wide = item_bytes(layer.tensor.dtype), _wide_bytes(layer)
    # Bytes of another type exist as they are stored and converted, side by side. Of a change
    # there are the weights of both models and their difference.
    reading = 3 * wide if isinstance(layer, Change) else wide + item * (item != wide)
    # Kernel slices are copied, the weights of a transposed layer to sum up their squares, and all
    # others to be shuffled.
    copied = shuffled or layer.n_matrices > 1 or layer.band_axis == 1
    return layer.numel * max(reading, 2 * wide if copied else wide)


def _band_bytes(layer: Layer, axis: int, windows: Sequence[Window]) -> int:
    """Return the most memory that the bands of a layer take."""
    item, wide = item_bytes(layer.tensor.dtype), _wide_bytes(layer)
    beside = (layer.cols, layer.rows)[axis]
    entries = max(BAND_ENTRIES, beside * max(window[axis] for window in windows))
    each = 3 * wide if isinstance(layer, Change) else item if layer.tensor.is_floating else wide
    return entries * each


def _wide_bytes(layer: Layer) -> int:
    """Return the bytes of a weight that is read as float32, complex64 or wider."""
    return max(item_bytes(layer.tensor.dtype), 8 if layer.tensor.is_complex else 4)


def _window_bytes(window: Window, layer: Layer) -> int:
    """Return the bytes of one window in double precision, its Gram matrix and a copy of that."""
    short = min(window)
    factor = 2 if layer.tensor.is_complex else 1
    return 8 * factor * (math.prod(window) + 2 * short * short)


def item_bytes(dtype: str) -> int:
    """Return the bytes of one entry of this type."""
    found = getattr(torch, dtype, None)
    # Packed types have names of their own; their values are read as float32.
    return int(found.itemsize) if isinstance(found, torch.dtype) else 4


def plan_seconds(plan: Plan) -> list[float]:
    """Return the estimated seconds on one core of every layer of a plan."""
    run = plan.run
    return [
        estimate(layer, run.spec, run.window, full_spectrum=run.full_spectrum).seconds()
        for layer in plan.layers
    ]


def costliest_first(plan: Plan) -> list[Layer]:
    """Return the layers of a plan, the costliest first, so that none is waited for at the end."""
    seconds = plan_seconds(plan)
    return [plan.layers[i] for i in sorted(range(len(seconds)), key=lambda i: (-seconds[i], i))]
