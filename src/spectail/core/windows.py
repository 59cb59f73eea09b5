"""Windows: sub-matrices of one fixed shape, and where they lie in a matrix.

A window is named by its short side. Its aspect ratio is (side along the matrix's longer side) /
(side along the matrix's shorter side): a window of ratio above 1 lies along the matrix, one below 1
across it. The long side of a square matrix is its input dimension (the columns). Only ratio 1
guarantees the same windows for a matrix and its transpose. This module computes with integers only
and never reads weights. The sizes that a run allows, and its common window, are in ``farms``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from spectail.basics.checks import is_whole
from spectail.errors import SpecError

_MOST_DIGITS = 18
"""Digits of the largest number of windows that is read from a text."""
_BEYOND = 2.0**62
"""A side that is larger than every matrix."""


class Window(NamedTuple):
    """The shape of a window in the stored orientation of its matrix."""

    rows: int
    cols: int


@dataclass(frozen=True)
class Tile:
    """The fewest windows that cover the matrix, evenly spread from edge to edge."""

    def positions(
        self, rows: int, cols: int, window: Window, seed: int = 0
    ) -> list[tuple[int, int]]:
        """Return the top left corners (row, column) of the windows, row by row."""
        return _lattice(_tiles(rows, window.rows), _tiles(cols, window.cols))

    def __str__(self) -> str:
        return "tile"


@dataclass(frozen=True)
class Grid:
    """``per_side`` x ``per_side`` windows from edge to edge; fewer if there is no room to move."""

    per_side: int

    def __post_init__(self) -> None:
        _require_positive("grid:K", self.per_side)

    def positions(
        self, rows: int, cols: int, window: Window, seed: int = 0
    ) -> list[tuple[int, int]]:
        """Return the top left corners (row, column) of the windows, row by row."""
        return _lattice(
            _spread(rows - window.rows, self.per_side), _spread(cols - window.cols, self.per_side)
        )

    def __str__(self) -> str:
        return f"grid:{self.per_side}"


@dataclass(frozen=True)
class Step:
    """A window every ``stride`` rows and columns; an edge narrower than the stride is left out."""

    stride: int

    def __post_init__(self) -> None:
        _require_positive("step:S", self.stride)

    def positions(
        self, rows: int, cols: int, window: Window, seed: int = 0
    ) -> list[tuple[int, int]]:
        """Return the top left corners (row, column) of the windows, row by row."""
        return _lattice(
            range(0, rows - window.rows + 1, self.stride),
            range(0, cols - window.cols + 1, self.stride),
        )

    def __str__(self) -> str:
        return f"step:{self.stride}"


@dataclass(frozen=True)
class RandomPlacement:
    """``count`` windows at uniformly random places, which may overlap and depend on the seed."""

    count: int

    def __post_init__(self) -> None:
        _require_positive("random:N", self.count)

    def positions(
        self, rows: int, cols: int, window: Window, seed: int = 0
    ) -> list[tuple[int, int]]:
        """Return the top left corners (row, column) of the windows, in the order drawn."""
        rng = np.random.default_rng(seed)
        # The upper bound of integers() is exclusive, so every position that fits can be drawn.
        top = rng.integers(0, rows - window.rows + 1, self.count)
        left = rng.integers(0, cols - window.cols + 1, self.count)
        return list(zip(top.tolist(), left.tolist(), strict=True))

    def __str__(self) -> str:
        return f"random:{self.count}"


Placement: TypeAlias = Tile | Grid | Step | RandomPlacement


def parse_placement(text: str) -> Placement:
    """Parse ``tile``, ``grid:K``, ``step:S`` or ``random:N``; raise SpecError for other text."""
    kind, _, number = text.strip().partition(":")
    if text.strip() == "tile":
        return Tile()
    types: dict[str, type[Grid] | type[Step] | type[RandomPlacement]] = {
        "grid": Grid,
        "step": Step,
        "random": RandomPlacement,
    }
    # Python does not read numbers of thousands of digits.
    if kind in types and number.isdecimal() and len(number) <= _MOST_DIGITS:
        return types[kind](int(number))
    raise SpecError(
        f"placement must be tile, grid:K, step:S or random:N with a whole number, not {text!r}"
    )


def window_shape(rows: int, cols: int, short_side: int, aspect_ratio: float = 1.0) -> Window:
    """Return the shape of a window with this short side and ratio in a rows x cols matrix.

    The long side is ``short_side * ratio`` (or ``/ ratio`` below 1), rounded to the nearest
    integer. Raises SpecError if the window does not fit.
    """
    # "Along" is the direction of the matrix's longer side; a square matrix counts as wide.
    along, across = _sides(short_side, aspect_ratio)
    window = Window(across, along) if cols >= rows else Window(along, across)
    if window.rows > rows or window.cols > cols:
        raise SpecError(
            f"a window of {window.rows} x {window.cols} does not fit into a matrix of "
            f"{rows} x {cols}; the largest short side that fits at aspect ratio {aspect_ratio:g} "
            f"is {largest_fit(rows, cols, aspect_ratio)}"
        )
    return window


def largest_fit(rows: int, cols: int, aspect_ratio: float = 1.0) -> int:
    """Return the largest short side of a window of this ratio that fits; 0 if none does."""
    short, long = sorted((rows, cols))
    # Start one above the estimate, since the other side is rounded, and step down to the exact fit.
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
"""Fewest bands of rows or columns from which a spread can be estimated; see ``jackknife``."""


def disjoint_window(window: Window, rows: int, cols: int, bands: int, most: float = 1.0) -> Window:
    """Return the largest window of this shape that fits ``bands`` times along each side.

    It is at most ``most`` times the size of ``window``.
    """
    # 1e-9: in floating point (a / b) * b may fall just below a.
    scale = min(most, rows // bands / window.rows, cols // bands / window.cols)
    return Window(int(window.rows * scale + 1e-9), int(window.cols * scale + 1e-9))


def disjoint_bands(extent: int, size: int) -> list[int]:
    """Return starts of as many disjoint bands of ``size`` as fit into ``extent``, evenly spread."""
    return _spread(extent - size, extent // size)


def _sides(short_side: int, aspect_ratio: float) -> tuple[int, int]:
    """Return (side along the matrix's longer side, side across it)."""
    if aspect_ratio >= 1:
        return int(min(short_side * aspect_ratio, _BEYOND) + 0.5), short_side
    return short_side, int(min(short_side / aspect_ratio, _BEYOND) + 0.5)


def _tiles(extent: int, size: int) -> list[int]:
    """Return the starts of the fewest intervals of ``size`` that cover ``extent``."""
    # -(-a // b) is a / b rounded up.
    return _spread(extent - size, -(-extent // size))


def _spread(room: int, count: int) -> list[int]:
    """Return ``count`` distinct integers from 0 to ``room``, evenly and symmetrically spread.

    There are all ``room + 1`` of them if ``count`` is larger.
    """
    count = min(count, max(0, room + 1))
    # Round the first half to the nearest integer and mirror it: (2 i room) / (2 (count - 1)).
    half = [(2 * i * room + count - 1) // (2 * (count - 1)) for i in range(count // 2)]
    middle = [room // 2] if count % 2 else []
    return sorted({*half, *middle, *(room - start for start in half)})


def _lattice(tops: range | list[int], lefts: range | list[int]) -> list[tuple[int, int]]:
    """Return all pairs of a row and a column, row by row."""
    return [(top, left) for top in tops for left in lefts]


def _require_positive(what: str, number: int) -> None:
    """Raise SpecError if the number of a placement is no whole number, or below 1."""
    if not is_whole(number):
        raise SpecError(f"{what} needs a whole number of at least 1, not {number!r}")
