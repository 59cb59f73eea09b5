"""Engines: where the layers of a run are measured; one file and one table line each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from spectail.errors import SpecError
from spectail.measuring.engines.local import measure as measure_here
from spectail.measuring.engines.ray import RayEngine
from spectail.measuring.layer import Plan
from spectail.models.source import Layer
from spectail.results.records import LayerRecord

Engine: TypeAlias = Callable[[Plan, Iterable[Layer]], Iterable[LayerRecord]]
"""A function that measures layers by a plan. Records may come in any order. One with a true
attribute ``elsewhere`` measures in other processes: it gets the costliest layers first, and the
device is checked there."""

ENGINES: dict[str, Engine] = {"local": measure_here, "ray": RayEngine()}
"""All engines by their name on the command line."""


def engine_named(name: str, ray_address: str | None = None) -> Engine:
    """Return the engine of this name; ``ray_address`` is the cluster of the ray engine.

    Raises:
        SpecError: if there is no such engine, or an address is given for another one.

    """
    if name not in ENGINES:
        raise SpecError(f"engine must be one of {', '.join(ENGINES)}, not {name!r}")
    if ray_address is None:
        return ENGINES[name]
    if name != "ray":
        raise SpecError(f"--ray-address needs --engine ray, not {name!r}")
    return RayEngine(ray_address)


def is_elsewhere(engine: Engine) -> bool:
    """Return whether an engine measures in other processes, perhaps on other machines."""
    return bool(getattr(engine, "elsewhere", False))
