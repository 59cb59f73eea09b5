from typing import Any

import pytest

from spectail.basics.texts import first_names


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
