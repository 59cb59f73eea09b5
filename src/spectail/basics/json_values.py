"""Read JSON files, and turn values into ones that JSON can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

T = TypeVar("T", dict[str, Any], list[Any])


class TextFile(Protocol):
    """A path whose file is read as text."""

    def read_text(self, encoding: str | None = None) -> str:
        """Return the file's text."""


def plain(values: Any) -> Any:
    """Return values for JSON: None for numbers that are not finite, lists for tuples.

    >>> plain({"alpha": float("nan"), "window": (64, 128.0)})
    {'alpha': None, 'window': [64, 128.0]}
    """
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, Mapping):
        return {str(key): plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    return values


def read_json(path: TextFile, kind: type[T]) -> T:
    """Read a JSON file; one that is missing, damaged or not of type ``kind`` counts as empty."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return kind()
    return value if isinstance(value, kind) else kind()
