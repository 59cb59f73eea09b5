import math
from typing import Any

import pytest

from spectail.basics.texts import first_names, joined, plural, with_error


@pytest.mark.parametrize(
    ("names", "most", "text"),
    [
        ([], 1, ""),
        (["a"], 1, "a"),
        (["a", "b"], 1, "a and 1 more"),
        ("abc", 2, "a, b and 1 more"),
        (iter("abcde"), 4, "a, b, c, d and 1 more"),
        ({"a": 1, "b": 2}, 2, "a, b"),
    ],
)
def test_first_names(names: Any, most: int, text: str) -> None:
    assert first_names(names, most) == text


@pytest.mark.parametrize(
    ("texts", "text"),
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_joined(texts: list[str], text: str) -> None:
    assert joined(texts) == text


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 layers"), (1, "1 layer"), (2, "2 layers"), (1000, "1,000 layers")]
)
def test_plural(n: int, text: str) -> None:
    assert plural(n, "layer") == text


@pytest.mark.parametrize(
    ("error", "text"),
    [(0.0, "2.000 ± 0.000"), (0.01249, "2.000 ± 0.012"), (math.nan, "2.000"), (math.inf, "2.000")],
)
def test_with_error(error: float, text: str) -> None:
    assert with_error(2.0, error) == text
