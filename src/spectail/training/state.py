"""The state of a Balancer between steps, and the check of a stored state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def signature(units: Sequence[Unit]) -> dict[str, list[list[int]]]:
    """Return names and weight shapes of units, which tell the state of one model from another's."""
    return {unit.name: [list(p.shape) for p in unit.weights] for unit in units}


def check_state(state: Any, own: Mapping[str, Any], candidates: Mapping[str, Any]) -> list[str]:
    """Return the rule's settings in which a stored state differs from the Balancer's own.

    ``candidates`` is the signature of all layers that may ever take part. A layer may be in only
    one of the two states, if it was frozen, or not in the optimizer, then or is so now.

    Raises:
        TrainingError: the state is not a Balancer's, or belongs to another model.

    """
    # Keys beyond the known ones are allowed: a later version may store more.
    if not isinstance(state, Mapping) or state.get("format") != FORMAT or own.keys() - state.keys():
        raise TrainingError(
            "expected a state that Balancer.state_dict has given, this is another or a damaged one"
        )
    before, now = state["layers"], own["layers"]
    lacking = [name for name in now if name not in before and name not in state["waiting"]]
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
    return [key for key in own["rule"] if state["rule"].get(key) != own["rule"][key]]
