import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spectail.basics.json_values import plain, read_json
from spectail.errors import SourceError


def test_numbers_that_json_lacks_become_null_at_any_depth() -> None:
    found = plain({"a": [math.nan, (math.inf, {"b": -math.inf})], 3: np.float64("nan"), "c": 0.1})
    assert json.dumps(found, allow_nan=False) == (
        '{"a": [null, [null, {"b": null}]], "3": null, "c": 0.1}'
    )


@pytest.mark.parametrize("value", [True, None, 0, 2**70, "NaN", 1e308])
def test_what_json_can_hold_stays_as_it_is(value: float | str | None) -> None:
    assert plain(value) is value


def test_a_file_that_is_missing_counts_as_empty(tmp_path: Path) -> None:
    assert read_json(tmp_path / "config.json", dict) == {}
    assert read_json(tmp_path / "config.json" / "below", list) == []
    # A pipe that nothing writes to would wait for ever.
    os.mkfifo(tmp_path / "pipe")
    assert read_json(tmp_path / "pipe", dict) == {}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"3", b"\xff\xfe", b'"text"', b'{"a": NaN}', b'{"a": 1e400}', b"[" * 9999],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"config\.json cannot be used \(.*\); download it"):
        read_json(path, dict)


@pytest.mark.parametrize(("text", "value"), [('{"a": "α"}', {"a": "α"}), ("[1, 2]", [1, 2])])
def test_a_value_is_read_as_the_type_it_has(
    tmp_path: Path, text: str, value: dict[str, str] | list[int]
) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    kind: Any = type(value)
    assert read_json(tmp_path / "config.json", kind) == value
    other: Any = list if isinstance(value, dict) else dict
    with pytest.raises(SourceError, match=r"expected (array, got object|object, got array)"):
        read_json(tmp_path / "config.json", other)
