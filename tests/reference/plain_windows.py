"""Windows by trying: shapes by search, coverage by marking every entry."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def sides(short_side: int, ratio: float) -> tuple[int, int]:
    """(along, across) of a window: along / across is the ratio, the short side
    as given, the long one rounded.
    """
    if ratio >= 1:
        return math.floor(short_side * ratio + 0.5), short_side
    return short_side, math.floor(short_side / ratio + 0.5)


def oriented(rows: int, cols: int, short_side: int, ratio: float) -> tuple[int, int]:
    """(rows, cols) of a window that lies along the longer side of the matrix;
    along the columns of a square one.
    """
    along, across = sides(short_side, ratio)
    return (along, across) if rows > cols else (across, along)


def largest_fit(rows: int, cols: int, ratio: float) -> int:
    """The largest short side whose window fits, by trying all; 0 where none does."""
    fitting = [0]
    for side in range(1, max(rows, cols) + 1):
        height, width = oriented(rows, cols, side, ratio)
        if height <= rows and width <= cols:
            fitting.append(side)
    return max(fitting)


def times_seen(
    rows: int, cols: int, shape: tuple[int, int], corners: list[tuple[int, int]]
) -> NDArray[np.int_]:
    """How many windows hold each entry of the matrix; fails where one sticks out."""
    seen = np.zeros((rows, cols), dtype=int)
    for top, left in corners:
        assert 0 <= top <= rows - shape[0]
        assert 0 <= left <= cols - shape[1]
        for row in range(top, top + shape[0]):
            seen[row, left : left + shape[1]] += 1
    return seen
