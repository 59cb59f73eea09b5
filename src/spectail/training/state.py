"""The state of a Balancer between steps, and the check of a stored state."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import msgspec

from spectail.basics.schema import Count, SchemaError, checked
from spectail.basics.texts import first_names
from spectail.errors import TrainingError
from spectail.training.parameter_units import Unit

FORMAT = "spectail balancer"


@dataclass(frozen=True)
class FactorRamp:
    """Factors of all units that change evenly from ``start`` to ``goal`` over some steps."""

    start: tuple[float, ...]
    goal: tuple[float, ...]
    since: int = 0
    """The number of steps that were made when the change began."""

    def of(self, before: Sequence[Unit], now: Sequence[Unit]) -> FactorRamp:
        """Return the ramp for the units ``now``; new units begin at factor 1."""
        start = dict(zip((unit.name for unit in before), self.start, strict=True))
        goal = dict(zip((unit.name for unit in before), self.goal, strict=True))
        names = [unit.name for unit in now]
        return FactorRamp(
            tuple(start.get(n, 1.0) for n in names),
            tuple(goal.get(n, 1.0) for n in names),
            self.since,
        )

    def at(self, step: int, transition: int) -> tuple[float, ...]:
        """Return the factors after ``step`` steps; each step goes 1 / transition of the way.

        >>> [FactorRamp((1.0,), (2.0,), since=10).at(step, 4) for step in (10, 11, 12, 13, 14)]
        [(1.25,), (1.5,), (1.75,), (2.0,), (2.0,)]
        """
        done = step + 1 - self.since
        # Exactly the goal, without the rounding of the line below.
        if done >= transition:
            return self.goal
        return tuple(
            a + (b - a) * done / transition for a, b in zip(self.start, self.goal, strict=True)
        )


Factor: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e30)]
"""The factor of a unit; larger ones would overflow when they meet a rate."""


class GroupValue(msgspec.Struct):
    """A value of an optimizer's group that differs between the units: see ``SplitGroups.state``."""

    place: tuple[int, int]
    key: str
    shown: Any
    values: list[tuple[str | None, list[Any]]]

    def __post_init__(self) -> None:
        """Refuse values of another type than the one that the user's group shows."""
        # The parameters of a group are the model's own and are never stored.
        if self.key == "params":
            raise ValueError("parameters among the values of a group")
        for _, held in self.values:
            if len(held) > 1 or not all(_are_alike(value, self.shown) for value in held):
                raise ValueError(f"values of {self.key!r} that are not of the type of its own")


class Pending(msgspec.Struct):
    """A measurement that was running in the background."""

    step: Count
    records: list[dict[str, Any]]


class StoredState(msgspec.Struct):
    """What ``Balancer.state_dict`` gives; later versions may add further fields."""

    format: str
    rule: dict[str, Any]
    layers: dict[str, list[list[int]]]
    waiting: list[str]
    window: Annotated[int, msgspec.Meta(ge=1)] | None
    steps: Count
    start: dict[str, Factor]
    goal: dict[str, Factor]
    since: Count
    lacking: dict[str, str]
    warned: list[str]
    groups: list[GroupValue]
    pending: Pending | None
    history: dict[str, Any]

    def __post_init__(self) -> None:
        """Refuse a state of something else, and factors that no run can have."""
        if self.format != FORMAT:
            raise ValueError(f"expected the format {FORMAT!r}, got {self.format[:40]!r}")
        if not self.layers.keys() <= self.start.keys() & self.goal.keys():
            raise ValueError("a layer without a factor")
        if self.since > self.steps:
            raise ValueError("factors that change after the last step")


def _are_alike(value: Any, shown: Any) -> bool:
    """Whether two stored values are both numbers, or of one type."""
    if isinstance(shown, int | float) and isinstance(value, int | float):
        return abs(value) <= sys.float_info.max
    return type(value) is type(shown)


def read_state(state: Any) -> StoredState:
    """Check a stored state against its schema; TrainingError for anything else."""
    try:
        return checked(StoredState, state)
    except SchemaError as error:
        raise TrainingError(
            "expected a state that Balancer.state_dict has given, this is another or a damaged one "
            f"({error})"
        ) from None


def signature(units: Sequence[Unit]) -> dict[str, list[list[int]]]:
    """Return names and weight shapes of units, which tell the state of one model from another's."""
    return {unit.name: [list(p.shape) for p in unit.weights] for unit in units}


def check_state(
    state: StoredState, own: Mapping[str, Any], candidates: Mapping[str, Any]
) -> list[str]:
    """Return the rule's settings in which a stored state differs from the Balancer's own.

    ``candidates`` is the signature of all layers that may ever take part. A layer may be in only
    one of the two states, if it was frozen, or not in the optimizer, then or is so now.

    Raises:
        TrainingError: the state belongs to another model.

    """
    before, now = state.layers, own["layers"]
    lacking = [name for name in now if name not in before and name not in state.waiting]
    more = [name for name in before if name not in candidates]
    other = [name for name in candidates if name in before and before[name] != candidates[name]]
    if lacking or more or other:
        found = [
            f"{word} {first_names(names)}"
            for word, names in (("it lacks", lacking), ("it has", more), ("other shapes at", other))
            if names
        ]
        raise TrainingError(
            f"the state is of another model, or of other layers of it: {'; '.join(found)}"
        )
    return [key for key in own["rule"] if state.rule.get(key) != own["rule"][key]]
