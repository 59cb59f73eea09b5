"""Checks of arguments that several functions share."""

from __future__ import annotations

from typing import Any

from spectail.errors import SpectailError


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether a value is an ``int`` of at least ``least``; True and False are none."""
    # In Python True is an int, which would pass as 1.
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_whole(error: type[SpectailError], least: int = 1, /, **values: Any) -> None:
    """Raise ``error`` with the name of the first value that is no whole number >= ``least``."""
    for name, value in values.items():
        if not is_whole(value, least):
            raise error(f"{name} must be a whole number of at least {least}, not {value!r}")
