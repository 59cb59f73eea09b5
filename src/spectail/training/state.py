"""What a Balancer keeps between steps, stored as plain values that torch and JSON can save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectail.errors import TrainingError
from spectail.training.structure import Unit

FORMAT = "spectail balancer"


@dataclass(frozen=True)
class FactorRamp:
    """Factors that move from ``start`` to ``goal``, evenly over some steps after ``since``."""

    start: tuple[float, ...]
    goal: tuple[float, ...]
    since: int = 0

    def of(self, before: Sequence[Unit], now: Sequence[Unit]) -> FactorRamp:
        """The same for other units: those that are new begin at factor 1."""
        start = dict(zip((unit.name for unit in before), self.start, strict=True))
        goal = dict(zip((unit.name for unit in before), self.goal, strict=True))
        names = [unit.name for unit in now]
        return FactorRamp(
            tuple(start.get(n, 1.0) for n in names),
            tuple(goal.get(n, 1.0) for n in names),
            self.since,
        )

    def at(self, step: int, transition: int) -> tuple[float, ...]:
        """The factors after ``step`` steps; the first one goes 1 / transition of the way.

        >>> [FactorRamp((1.0,), (2.0,), since=10).at(step, 4) for step in (10, 11, 12, 13, 14)]
        [(1.25,), (1.5,), (1.75,), (2.0,), (2.0,)]
        """
        done = step + 1 - self.since
        if done >= transition:
            return self.goal
        return tuple(
            a + (b - a) * done / transition for a, b in zip(self.start, self.goal, strict=True)
        )


def signature(units: Sequence[Unit]) -> dict[str, list[list[int]]]:
    """What tells one model's state from another's: balanced layers and shapes of their weights."""
    return {unit.name: [list(p.shape) for p in unit.weights] for unit in units}


def check_state(state: Any, own: Mapping[str, Any], candidates: Mapping[str, Any]) -> list[str]:
    """Names of the rule's settings in which a stored state differs from the Balancer's own.

    A layer may be in one of them alone where it was frozen, or not in the optimizer, when the state
    was saved, or is so now: ``candidates`` is the signature of all layers that may ever take part.

    Raises:
        TrainingError: it is no Balancer's state, or that of another model.

    """
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
            f"{word} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for word, names in (("it lacks", lacking), ("it has", more), ("other shapes at", other))
            if names
        ]
        raise TrainingError(
            f"the state is of another model, or of other layers of it: {'; '.join(found)}"
        )
    return [key for key in own["rule"] if state["rule"].get(key) != own["rule"][key]]
