"""Engines: where the layers of a run are measured; one file and one table line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from spectail.errors import SpecError
from spectail.measuring.engines.local import measure as measure_here
from spectail.measuring.engines.ray import measure as measure_on_ray
from spectail.measuring.layer import Plan
from spectail.models.source import Layer
from spectail.results.records import LayerRecord

Engine: TypeAlias = Callable[[Plan, Iterable[Layer]], Iterable[LayerRecord]]
"""A function that measures layers by a plan. Records may come in any order."""

ENGINES: dict[str, Engine] = {"local": measure_here, "ray": measure_on_ray}
"""All engines by their name on the command line."""


def engine_named(name: str) -> Engine:
    """Return the engine of this name.

    Raises:
        SpecError: if there is no such engine.

    """
    if name not in ENGINES:
        raise SpecError(f"engine must be one of {', '.join(ENGINES)}, not {name!r}")
    return ENGINES[name]
