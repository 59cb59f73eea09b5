"""The checks of what is read from JSON."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from spectail.basics.schema import (
    Count,
    Finite,
    SchemaError,
    build,
    checked,
    each,
    parse_json,
)


@dataclass(frozen=True)
class Point:
    """A dataclass of two fields."""

    x: Finite
    n: Count = 0


@pytest.mark.parametrize(
    "value", [None, True, 1, -2.5, "α", "\ud800", [1, [2]], {"a": {"b": None}}, 2**64, 1e308]
)
def test_json_is_parsed_as_python_parses_it(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NaN", "NaN is not a number of JSON"),
        ("[-Infinity]", "-Infinity is not a number of JSON"),
        ("1e400", "1e400 is too large for a number"),
        ("-1e999", "-1e999 is too large"),
        ("", "it is no JSON: Expecting value"),
        ("[" * 100_000, "it is nested too deep"),
        ("9" * 5000, "it is no JSON"),
        (b"\xff", "it is no JSON"),
    ],
)
def test_what_is_no_json(text: str | bytes, message: str) -> None:
    with pytest.raises(SchemaError, match=message) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1, 2**63, 1.5, True, "1", None, 10**400])
def test_what_is_no_count(value: Any) -> None:
    with pytest.raises(SchemaError, match="expected int"):
        checked(Count, value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None])
def test_what_is_no_finite_number(value: Any) -> None:
    with pytest.raises(SchemaError, match="expected"):
        checked(Finite, value)


def test_a_dataclass_is_built_field_by_field() -> None:
    assert build(Point, {"x": 1}) == Point(1.0)
    assert build(Point, {"x": "4"}, x=float) == Point(4.0)
    assert each(partial(build, Point), [{"x": 1}, {"x": 2, "n": 3}]) == (Point(1.0), Point(2.0, 3))


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"x": "1"}, "x: expected float, got str"),
        ({"x": 1, "y": 2}, "this version does not know its field 'y'"),
        ({"n": 1}, "its field 'x' is missing"),
        ([1], "expected object, got array"),
        ({1: 2}, "expected str"),
    ],
)
def test_what_is_no_such_dataclass(stored: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        build(Point, stored)
    with pytest.raises(SchemaError, match=f"entry 1: .*{message}"):
        each(partial(build, Point), [{"x": 1}, stored])


def test_what_was_given_is_not_changed() -> None:
    stored = {"x": 1.0, "n": 2}
    build(Point, stored)
    assert stored == {"x": 1.0, "n": 2}
