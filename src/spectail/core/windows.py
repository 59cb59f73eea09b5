"""Windows: sub-matrices of one fixed shape, and where they lie in a matrix.

A window is named by its short side. Its aspect ratio is (side along the matrix's longer side) /
(side along the matrix's shorter side), so a ratio above 1 lies along the matrix and one below 1
across it; the long side of a square matrix is its input dimension (the columns). Only ratio 1
promises the same windows for a matrix and its transpose. Geometry is plain integers: nothing here
looks at weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from spectail.errors import SpecError


class Window(NamedTuple):
    """The shape of a window in the stored orientation of its matrix."""

    rows: int
    cols: int


@dataclass(frozen=True)
class Tile:
    """The fewest windows that cover the matrix, evenly spread, the first and last touching the edges."""

    def positions(
        self, rows: int, cols: int, window: Window, seed: int = 0
    ) -> list[tuple[int, int]]:
        """Top left corners (row, column) of the windows, row by row."""
        return _lattice(_tiles(rows, window.rows), _tiles(cols, window.cols))

    def __str__(self) -> str:
        return "tile"


@dataclass(frozen=True)
class Grid:
    """``per_side`` x ``per_side`` windows, evenly spread from edge to edge (fewer where there is no room to move)."""

    per_side: int

    def __post_init__(self) -> None:
        _require_positive("grid:K", self.per_side)

    def positions(
        self, rows: int, cols: int, window: Window, seed: int = 0
    ) -> list[tuple[int, int]]:
        """Top left corners (row, column) of the windows, row by row."""
        return _lattice(
            _spread(rows - window.rows, self.per_side), _spread(cols - window.cols, self.per_side)
        )

    def __str__(self) -> str:
        return f"grid:{self.per_side}"


@dataclass(frozen=True)
class Step:
    """A window every ``stride`` rows and columns, from the top left; an edge narrower than the stride is left out."""

    stride: int

    def __post_init__(self) -> None:
        _require_positive("step:S", self.stride)

    def positions(
        self, rows: int, cols: int, window: Window, seed: int = 0
    ) -> list[tuple[int, int]]:
        """Top left corners (row, column) of the windows, row by row."""
        return _lattice(
            range(0, rows - window.rows + 1, self.stride),
            range(0, cols - window.cols + 1, self.stride),
        )

    def __str__(self) -> str:
        return f"step:{self.stride}"


@dataclass(frozen=True)
class RandomPlacement:
    """``count`` windows at uniformly random places, which may overlap; the same seed gives the same places."""

    count: int

    def __post_init__(self) -> None:
        _require_positive("random:N", self.count)

    def positions(
        self, rows: int, cols: int, window: Window, seed: int = 0
    ) -> list[tuple[int, int]]:
        """Top left corners (row, column) of the windows, in the order drawn."""
        rng = np.random.default_rng(seed)
        top = rng.integers(0, rows - window.rows + 1, self.count)
        left = rng.integers(0, cols - window.cols + 1, self.count)
        return list(zip(top.tolist(), left.tolist(), strict=True))

    def __str__(self) -> str:
        return f"random:{self.count}"


Placement: TypeAlias = Tile | Grid | Step | RandomPlacement


def parse_placement(text: str) -> Placement:
    """``tile``, ``grid:K``, ``step:S`` or ``random:N`` as a Placement; anything else is a SpecError."""
    kind, _, number = text.strip().partition(":")
    if text.strip() == "tile":
        return Tile()
    types: dict[str, type[Grid] | type[Step] | type[RandomPlacement]] = {
        "grid": Grid,
        "step": Step,
        "random": RandomPlacement,
    }
    if kind in types and number.isdecimal():
        return types[kind](int(number))
    raise SpecError(
        f"placement must be tile, grid:K, step:S or random:N with a whole number, not {text!r}"
    )


def window_shape(rows: int, cols: int, short_side: int, aspect_ratio: float = 1.0) -> Window:
    """Shape of a window with the given short side and ratio in a rows x cols matrix; SpecError where it does not fit.

    The long side is ``short_side * ratio`` (or ``/ ratio`` below 1) rounded to the nearest integer.
    """
    along, across = _sides(short_side, aspect_ratio)
    window = Window(across, along) if cols >= rows else Window(along, across)
    if window.rows > rows or window.cols > cols:
        raise SpecError(
            f"a window of {window.rows} x {window.cols} does not fit into a matrix of {rows} x {cols}; the largest "
            f"short side that fits at aspect ratio {aspect_ratio:g} is {largest_fit(rows, cols, aspect_ratio)}"
        )
    return window


def largest_fit(rows: int, cols: int, aspect_ratio: float = 1.0) -> int:
    """The largest short side of a window of this ratio that fits into a rows x cols matrix (0 where none does)."""
    short, long = sorted((rows, cols))
    side = (
        min(short, int(long / aspect_ratio) + 1)
        if aspect_ratio >= 1
        else min(long, int(short * aspect_ratio) + 1)
    )
    while side > 0:
        along, across = _sides(side, aspect_ratio)
        if along <= long and across <= short:
            break
        side -= 1
    return side


MIN_BANDS = 3
"""Fewer row or column bands of windows say nothing about a spread: see ``jackknife``."""


def disjoint_window(window: Window, rows: int, cols: int, bands: int, most: float = 1.0) -> Window:
    """The largest window of this shape, at most ``most`` times its size, that fits ``bands`` times along each side."""
    scale = min(most, rows // bands / window.rows, cols // bands / window.cols)
    return Window(int(window.rows * scale + 1e-9), int(window.cols * scale + 1e-9))


def disjoint_bands(extent: int, size: int) -> list[int]:
    """Starts of as many non-overlapping bands of ``size`` as fit into ``extent``, evenly spread."""
    return _spread(extent - size, extent // size)


def _sides(short_side: int, aspect_ratio: float) -> tuple[int, int]:
    """(side along the matrix's longer side, side across it)."""
    if aspect_ratio >= 1:
        return int(short_side * aspect_ratio + 0.5), short_side
    return short_side, int(short_side / aspect_ratio + 0.5)


def _tiles(extent: int, size: int) -> list[int]:
    return _spread(extent - size, -(-extent // size))


def _spread(room: int, count: int) -> list[int]:
    """``count`` starts from 0 to ``room``, even to the nearest integer and symmetric about the middle, no doubles."""
    half = [(2 * i * room + count - 1) // (2 * (count - 1)) for i in range(count // 2)]
    middle = [room // 2] if count % 2 else []
    return sorted({*half, *middle, *(room - start for start in half)})


def _lattice(tops: range | list[int], lefts: range | list[int]) -> list[tuple[int, int]]:
    return [(top, left) for top in tops for left in lefts]


def _require_positive(what: str, number: int) -> None:
    if number < 1:
        raise SpecError(f"{what} needs a whole number of at least 1, not {number}")
