"""Windows: the ratio that was asked for, every entry covered, edges touched, and
errors that say what would fit."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectail.core.windows import (
    Grid,
    RandomPlacement,
    Step,
    Tile,
    Window,
    disjoint_bands,
    largest_fit,
    parse_placement,
    window_shape,
)
from spectail.errors import SpecError
from tests.reference import plain_windows

RATIOS = [0.5, 0.75, 1.0, 1.25, 1.5, 2.0]
PLACEMENTS = {
    "tile": Tile(),
    "grid:1": Grid(1),
    "grid:4": Grid(4),
    "grid:5": Grid(5),
    "step:3": Step(3),
    "random:7": RandomPlacement(7),
}

sides = st.integers(1, 60)
ratios = st.sampled_from(RATIOS)


@st.composite
def fitting(
    draw: st.DrawFn, ratio: st.SearchStrategy[float] = ratios
) -> tuple[int, int, float, Window]:
    """A matrix shape and a window of some ratio that fits into it."""
    rows, cols, asked = draw(sides), draw(sides), draw(ratio)
    most = plain_windows.largest_fit(rows, cols, asked)
    if most == 0:
        rows, cols, most = rows + 4, cols + 4, plain_windows.largest_fit(rows + 4, cols + 4, asked)
    return rows, cols, asked, window_shape(rows, cols, draw(st.integers(1, most)), asked)


@given(sides, sides, ratios)
def test_largest_fit_is_the_largest(rows: int, cols: int, ratio: float) -> None:
    assert largest_fit(rows, cols, ratio) == plain_windows.largest_fit(rows, cols, ratio)


@given(sides, sides, ratios, st.integers(1, 80))
def test_a_window_has_the_ratio_asked_for_or_is_refused(
    rows: int, cols: int, ratio: float, side: int
) -> None:
    expected = plain_windows.oriented(rows, cols, side, ratio)
    if expected[0] <= rows and expected[1] <= cols:
        window = window_shape(rows, cols, side, ratio)
        assert window == expected
        assert min(window) == side
        along, across = (window.cols, window.rows) if cols >= rows else window
        assert abs(along - ratio * across) <= 0.5 * max(1, ratio)
    else:
        with pytest.raises(SpecError) as error:
            window_shape(rows, cols, side, ratio)
        assert str(error.value) == (
            f"a window of {expected[0]} x {expected[1]} does not fit into a matrix of "
            f"{rows} x {cols}; the largest short side that fits at aspect ratio {ratio:g} is "
            f"{plain_windows.largest_fit(rows, cols, ratio)}"
        )


@given(fitting())
def test_tiles_see_every_entry_and_touch_the_edges(case: tuple[int, int, float, Window]) -> None:
    rows, cols, _, window = case
    corners = Tile().positions(rows, cols, window)
    assert plain_windows.times_seen(rows, cols, window, corners).min() >= 1
    assert len(corners) == -(-rows // window.rows) * -(-cols // window.cols), (
        "the fewest that cover the matrix"
    )
    assert min(corners) == (0, 0)
    assert max(corners) == (rows - window.rows, cols - window.cols)


@given(fitting(), st.integers(1, 9))
def test_tiles_and_grids_are_even_and_symmetric(
    case: tuple[int, int, float, Window], per_side: int
) -> None:
    rows, cols, _, window = case
    for placement in (Tile(), Grid(per_side)):
        corners = placement.positions(rows, cols, window)
        for axis, room in enumerate((rows - window.rows, cols - window.cols)):
            starts = sorted({corner[axis] for corner in corners})
            mirrored = sorted(room - start for start in starts)
            assert all(abs(a - b) <= 1 for a, b in zip(starts, mirrored, strict=True)), (
                starts,
                room,
            )
            gaps = [b - a for a, b in itertools.pairwise(starts)]
            assert not gaps or max(gaps) - min(gaps) <= 2


@given(fitting(), st.integers(2, 9))
def test_a_grid_has_as_many_windows_as_asked_where_there_is_room(
    case: tuple[Any, ...], per_side: int
) -> None:
    rows, cols, _, window = case
    corners = Grid(per_side).positions(rows, cols, window)
    expected = min(per_side, rows - window.rows + 1) * min(per_side, cols - window.cols + 1)
    assert len(corners) == len(set(corners)) == expected
    assert plain_windows.times_seen(rows, cols, window, corners).max() <= len(corners)
    assert {(0, 0), (rows - window.rows, cols - window.cols)} <= set(corners)


@given(fitting(), st.integers(1, 70))
def test_steps_start_at_the_corner_and_stop_before_the_edge(
    case: tuple[Any, ...], stride: int
) -> None:
    rows, cols, _, window = case
    corners = Step(stride).positions(rows, cols, window)
    plain_windows.times_seen(rows, cols, window, corners)
    tops, lefts = (sorted({corner[axis] for corner in corners}) for axis in (0, 1))
    assert corners == list(itertools.product(tops, lefts))
    assert tops == [k * stride for k in range(len(tops))]
    assert tops[-1] + stride > rows - window.rows
    assert lefts[-1] + stride > cols - window.cols


@given(fitting(), st.integers(1, 20), st.integers(0, 5))
def test_random_windows_lie_inside_and_repeat_with_the_seed(
    case: tuple[Any, ...], count: int, seed: int
) -> None:
    rows, cols, _, window = case
    corners = RandomPlacement(count).positions(rows, cols, window, seed)
    assert len(corners) == count
    plain_windows.times_seen(rows, cols, window, corners)
    assert corners == RandomPlacement(count).positions(rows, cols, window, seed)


def test_another_seed_gives_other_random_windows() -> None:
    places = [RandomPlacement(9).positions(90, 90, Window(9, 9), seed) for seed in (0, 1)]
    assert places[0] != places[1]


@pytest.mark.parametrize(
    "placement", [p for p in PLACEMENTS.values() if not isinstance(p, RandomPlacement)], ids=str
)
@given(fitting(st.just(1.0)))
def test_the_transpose_has_transposed_windows_at_ratio_one(
    placement: Tile | Grid | Step, case: tuple[Any, ...]
) -> None:
    rows, cols, _, window = case
    turned = window_shape(cols, rows, min(window))
    there = placement.positions(rows, cols, window)
    back = placement.positions(cols, rows, turned)
    assert sorted(there) == sorted((left, top) for top, left in back)


@given(st.integers(1, 300), st.integers(1, 100))
def test_disjoint_bands_are_disjoint_and_as_many_as_fit(extent: int, size: int) -> None:
    starts = disjoint_bands(extent, size)
    assert len(starts) == extent // size
    assert all(b - a >= size for a, b in itertools.pairwise(starts))
    assert not starts or (starts[0] >= 0 and starts[-1] + size <= extent)


@pytest.mark.parametrize("text", PLACEMENTS)
def test_a_placement_is_what_its_text_says(text: str) -> None:
    assert parse_placement(text) == PLACEMENTS[text]
    assert str(PLACEMENTS[text]) == text
    assert parse_placement(f" {text} ") == PLACEMENTS[text]


BAD_PLACEMENTS = [
    "",
    "tiles",
    "tile:3",
    "grid",
    "grid:",
    "grid:x",
    "grid:-1",
    "grid:1.5",
    "step",
    "random:",
    "all",
    ":",
    "grid:" + "9" * 5000,
]


@pytest.mark.parametrize("text", BAD_PLACEMENTS, ids=lambda text: text[:20])
def test_a_bad_placement_is_named(text: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_placement(text)
    assert str(error.value) == (
        f"placement must be tile, grid:K, step:S or random:N with a whole number, not {text!r}"
    )


@pytest.mark.parametrize("text", ["grid:0", "step:0", "random:0"])
def test_a_placement_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="needs a whole number of at least 1, not 0"):
        parse_placement(text)


def test_a_grid_finer_than_the_matrix_takes_every_place_once() -> None:
    every = Grid(31).positions(40, 40, Window(10, 10))
    assert len(set(every)) == len(every) == 31**2
    assert Grid(10**18).positions(40, 40, Window(10, 10)) == every


@pytest.mark.parametrize("ratio", [1e-320, 1e-300, 1e300, 1.7e308])
def test_no_window_of_an_extreme_ratio_fits(ratio: float) -> None:
    assert largest_fit(64, 4096, ratio) <= 1
    with pytest.raises(SpecError, match="does not fit into a matrix of 64 x 4096"):
        window_shape(64, 4096, 64, ratio)
