"""Read JSON files, and turn values into ones that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from spectail.basics.schema import checked, parse_json
from spectail.basics.texts import first_line
from spectail.errors import SourceError

T = TypeVar("T", dict[str, Any], list[Any])


class TextFile(Protocol):
    """A path whose file is read as text."""

    def is_file(self) -> bool:
        """Whether there is a file."""

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
    """Read a JSON file; one that is missing counts as empty, and so does a pipe, which would wait.

    Raises:
        SourceError: The file is damaged, or holds JSON of another type.

    """
    if not path.is_file():
        return kind()
    try:
        return checked(kind, parse_json(path.read_text(encoding="utf-8")))
    except ValueError as error:  # also text that is not UTF-8
        raise SourceError(
            f"{path} cannot be used ({first_line(error)}); download it again, or remove it"
        ) from None
