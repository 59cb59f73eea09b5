"""Checks of arguments that several functions share."""

from __future__ import annotations

from typing import Any

from spectail.errors import SpectailError

MOST_SEED = 2**63 - 1
"""The largest seed that every generator of torch takes."""


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether a value is an ``int`` of at least ``least``; True and False are none."""
    # In Python True is an int, which would pass as 1.
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_whole(error: type[SpectailError], least: int = 1, /, **values: Any) -> None:
    """Raise ``error`` with the name of the first value that is no whole number >= ``least``."""
    for name, value in values.items():
        if not is_whole(value, least):
            raise error(f"{name} must be a whole number of at least {least}, not {value!r}")


def check_seed(error: type[SpectailError], seed: Any) -> None:
    """Raise ``error`` unless ``seed`` is a whole number that the generators of torch take."""
    if not is_whole(seed, 0) or seed > MOST_SEED:
        raise error(f"seed must be a whole number from 0 to {MOST_SEED}, not {seed!r}")
