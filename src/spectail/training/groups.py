"""Split an optimizer's groups by layer while it steps; outside of a step nobody sees the split.

The parts are built once, and refreshed from the user's groups before every step. So schedulers,
warm-up, logging and state dicts work on the user's groups alone. Every list of groups stays the
same object, because wrappers keep references to it. A group that is in several lists is split into
the same parts in all of them.

What an optimizer writes into its groups during a step (counters, schedule-free's sum of weights) is
kept as if the user had made one group per layer by hand. If all parts get the same value, it goes
into the user's group. If they get different values, each part keeps its own, and the user's group
shows the value of the parameters at the base rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from spectail.errors import TrainingError
from spectail.training.capture import is_captured
from spectail.training.state import GroupValue
from spectail.training.values import (
    alike,
    close,
    copied,
    is_number,
    is_plain,
    plain,
    same,
    times_written,
)

Group: TypeAlias = dict[str, Any]
_List: TypeAlias = tuple[list[Group], list[Group], list[Group]]
"""A list of groups, what it held before it was split, and what it was filled with."""
_ABSENT = object()
BY_PARAMETER = ("params", "param_names")
"""Keys of a group that hold one entry per parameter."""


@dataclass(eq=False)
class _Part:
    """One part of a user's group: the parameters of one unit; None for those without a factor."""

    unit: str | None
    group: Group
    factor: float = 1.0
    given: dict[str, tuple[Any, int]] = field(default_factory=dict)
    """For each key the value when the step began, and how often that tensor had been written."""
    sources: dict[str, tuple[Any, int, float]] = field(default_factory=dict)
    """For each key that holds a copy of a tensor: the user's tensor, how often it had been written,
    and the factor.
    """


@dataclass(eq=False)
class _Split:
    """A user's group and its parts."""

    place: tuple[int, int]
    """The number of its optimizer, and its own number there."""
    base: Group
    """The user's group."""
    members: list[int]
    """The ``id`` of its parameters when it was split."""
    parts: list[_Part]


@dataclass(eq=False)
class _Own:
    """The values of one key that differ between the parts of a group."""

    shown: Any
    """The value that the user's group was left with. If the group holds another one later, somebody
    has set it for all parts.
    """
    values: dict[str | None, list[Any]]
    """For each unit a list with its value; the list is empty if the part lacks the key."""

    @property
    def is_plain(self) -> bool:
        """Whether JSON can hold all values."""
        return is_plain(self.shown) and all(map(is_plain, self.values.values()))


class SplitGroups:
    """The split of the groups of an optimizer and of the optimizers inside of it.

    ``option`` is the option that is scaled (``lr``). ``unit_of`` maps the ``id`` of a parameter to
    the name of its unit; other parameters keep the value of their group. ``enter`` puts the parts
    in place of the user's groups, ``leave`` puts the user's groups back.
    """

    def __init__(self, option: str, unit_of: Mapping[int, str]) -> None:
        self.option, self._unit_of = option, dict(unit_of)
        self._splits: dict[tuple[int, int], _Split] = {}
        self._own: dict[tuple[int, int], dict[str, _Own]] = {}
        # A stack, because one step may run inside of another one (SAM's closure).
        self._windows: list[tuple[list[_List], list[_Split]]] = []
        self.rebuilt = False
        """Set if a group was split again, because it is new or its parameters have changed."""

    @property
    def inside(self) -> bool:
        """Whether the parts are in place."""
        return bool(self._windows)

    def assign(self, unit_of: Mapping[int, str]) -> None:
        """Split by other units from the next step on; values that differ by unit are kept."""
        self._unit_of = dict(unit_of)
        self._splits.clear()

    def enter(
        self,
        own: Mapping[int, list[Group]],
        around: Sequence[list[Group]],
        factors: Mapping[str, float],
    ) -> None:
        """Replace the groups in all these lists by their parts, with ``option`` scaled.

        ``own`` holds the lists of the innermost optimizers by their number. ``around`` holds other
        lists that may contain the same groups.
        """
        places = {(n, i) for n, groups in own.items() for i in range(len(groups))}
        # A group that is gone must not hold its parameters alive.
        for place in [place for place in self._splits if place[0] in own and place not in places]:
            del self._splits[place]
        splits = [
            self._split((n, i), group)
            for n, groups in own.items()
            for i, group in enumerate(groups)
        ]
        for split in splits:
            self._fill(split, factors)
        parts = {id(split.base): [part.group for part in split.parts] for split in splits}
        lists: list[_List] = [
            (groups, list(groups), [part for g in groups for part in parts.get(id(g), [g])])
            for groups in (*own.values(), *around)
        ]
        self._windows.append((lists, splits))
        # Slices are assigned, so that every list stays the object that others refer to.
        for groups, _, placed in lists:
            groups[:] = placed

    def leave(self, optimizer: Any) -> None:
        """Put the user's groups back, and keep what ``optimizer`` has written into the parts.

        Raises:
            TrainingError: the optimizer has set the scaled option itself.

        """
        splits = self._windows[-1][1]
        self.restore(len(self._windows) - 1)
        for split in splits:
            self._collect(split, optimizer)

    def restore(self, down_to: int = 0) -> None:
        """Put the user's groups back, also after a step that raised and never reached ``leave``."""
        while len(self._windows) > down_to:
            for groups, base, placed in reversed(self._windows[-1][0]):
                # A group that was added in the middle of the step stays, behind the others.
                groups[:] = [*base, *groups[len(placed) :]]
            # Last, so that Ctrl-C in between loses no group.
            self._windows.pop()

    def covers(self, groups: Sequence[Group]) -> bool:
        """Whether these groups are scaled already, being parts or copies of parts."""
        scaled = {id(p): part for part in self._placed() for p in part.group["params"]}
        parts = {id(part.group) for part in scaled.values()}
        copied = False
        for group in groups:
            if id(group) in parts:
                return True
            for part in (scaled[id(p)] for p in group["params"] if id(p) in scaled):
                if part.factor != 1 and not close(group.get(self.option), part.group[self.option]):
                    return False
                copied = copied or part.factor != 1
        return copied

    def differing(self, groups: Sequence[Group]) -> set[str]:
        """Return the units that have another value in these groups than the one they were given."""
        scaled = {id(p): part for part in self._placed() for p in part.group["params"]}
        found = set()
        for group in groups:
            for part in (scaled[id(p)] for p in group["params"] if id(p) in scaled):
                if part.unit is not None and not close(
                    group.get(self.option), part.group[self.option]
                ):
                    found.add(part.unit)
        return found

    def state(self) -> list[dict[str, Any]]:
        """Return the values that differ between parts as plain values, without ``unstored``."""
        return [
            {
                "place": list(place),
                "key": key,
                "shown": plain(own.shown),
                "values": [
                    [unit, [plain(value) for value in held]] for unit, held in own.values.items()
                ],
            }
            for place, keys in self._own.items()
            for key, own in keys.items()
            if own.is_plain
        ]

    def unstored(self) -> dict[str, str]:
        """Return the keys whose values differ between parts and cannot be stored, by type."""
        return {
            key: type(own.shown).__name__
            for keys in self._own.values()
            for key, own in keys.items()
            if not own.is_plain
        }

    def load_state(self, state: Sequence[GroupValue]) -> None:
        """Restore the result of ``state``; the optimizer's state may be loaded before or after."""
        self._own = {}
        for kept in state:
            own = _Own(kept.shown, {unit: list(held) for unit, held in kept.values})
            self._own.setdefault(kept.place, {})[kept.key] = own

    def _placed(self) -> Iterator[_Part]:
        return (part for _, splits in self._windows for split in splits for part in split.parts)

    def _split(self, place: tuple[int, int], group: Group) -> _Split:
        """Return the parts of a group; they are made again if it is new or its parameters are."""
        members = [id(p) for p in group["params"]]
        known = self._splits.get(place)
        # Built again only if necessary: an optimizer may keep references to the parts.
        if known is not None and known.base is group and known.members == members:
            return known
        # An empty group stays, as one empty part.
        numbers: dict[str | None, list[int]] = {} if members else {None: []}
        for i, member in enumerate(members):
            numbers.setdefault(self._unit_of.get(member), []).append(i)
        listed = [key for key in BY_PARAMETER if key in group]
        made = [
            _Part(unit, {key: [group[key][i] for i in at] for key in listed})
            for unit, at in numbers.items()
        ]
        self._splits[place] = _Split(place, group, members, made)
        self.rebuilt = True
        return self._splits[place]

    def _fill(self, split: _Split, factors: Mapping[str, float]) -> None:
        """Copy the values of the user's group, or a part's own ones, into the parts, and scale."""
        # A value that somebody has set in the user's group since overrides those of the parts.
        base, own = split.base, self._own.get(split.place, {})
        for key in [
            key for key, kept in own.items() if not same(base.get(key, _ABSENT), kept.shown)
        ]:
            del own[key]
        for part in split.parts:
            part.factor = 1.0 if part.unit is None else factors.get(part.unit, 1.0)
            # The user has removed the key since the last step.
            for key in part.group.keys() - base.keys():
                del part.group[key]
            for key, value in base.items():
                if key in BY_PARAMETER:
                    continue
                if key in own:
                    _set_own(part, key, own[key], value)
                else:
                    _set(part, key, value, part.factor if key == self.option else 1.0)
            # To tell afterwards what the step has written, by replacing a value or in place.
            part.given = {key: (value, times_written(value)) for key, value in part.group.items()}

    def _collect(self, split: _Split, optimizer: Any) -> None:
        """Keep the values that were written into the parts during the step."""
        # A dict in place of a set: keys are handled in a fixed order.
        changed: dict[str, None] = {}
        for part in split.parts:
            for key in [*part.group, *(part.given.keys() - part.group.keys())]:
                before, version = part.given.get(key, (_ABSENT, 0))
                now = part.group.get(key, _ABSENT)
                # The same object, written as often as before: nobody has touched it.
                if key not in BY_PARAMETER and (now is not before or times_written(now) != version):
                    changed[key] = None
        for key in changed:
            if key == self.option:
                self._keep_option(split, optimizer)
            else:
                self._keep(split, key)

    def _keep(self, split: _Split, key: str) -> None:
        """Keep one value: in the user's group, and for each part its own if they differ."""
        values = {part.unit: part.group.get(key, _ABSENT) for part in split.parts}
        own = self._own.setdefault(split.place, {})
        own.pop(key, None)
        first = next(iter(values.values()))
        if not all(same(first, value) for value in values.values()):
            present = [value for value in values.values() if value is not _ABSENT]
            # The user sees the value of the parameters at the base rate, if there are any.
            first = values[None] if values.get(None, _ABSENT) is not _ABSENT else present[0]
            held = {unit: [] if value is _ABSENT else [value] for unit, value in values.items()}
            own[key] = _Own(copied(first), held)
        in_place = all(
            part.group.get(key) is part.given.get(key, (None, 0))[0] for part in split.parts
        )
        _hand_back(split.base, key, first, in_place=in_place)

    def _keep_option(self, split: _Split, optimizer: Any) -> None:
        """Accept a new base value, if each part got this value times its factor.

        Raises:
            TrainingError: the parts got other values.

        """
        written = [(part, part.group.get(self.option)) for part in split.parts]
        if all(close(value, _value_of(part.given[self.option])) for part, value in written):
            return
        scaled: list[tuple[float, Any]] = [
            (p.factor, value) for p, value in written if p.factor and is_number(value)
        ]
        # A part at factor 1 holds the base itself; elsewhere division may leave a rounding error.
        base: Any = next((value for factor, value in scaled if factor == 1), None)
        if base is None and scaled:
            base = scaled[0][1] / scaled[0][0]
        if base is None or not all(close(value, base * part.factor) for part, value in written):
            raise TrainingError(
                f"{type(optimizer).__name__} writes {self.option!r} into its groups during step(), "
                "whatever factor a layer has, so it cannot be balanced; set it from outside of "
                "step()"
            )
        in_place = all(value is part.given[self.option][0] for part, value in written)
        _hand_back(split.base, self.option, base, in_place=in_place)


def _set(part: _Part, key: str, value: Any, factor: float) -> None:
    """Set a value times a factor in a part; a tensor of one number gets a copy of its own.

    All groups may share such a tensor, and it may be written in place. The copy keeps its address
    from step to step, because compiled and captured steps rely on it. Larger tensors are work space
    of the optimizer, and stay shared.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        part.group[key] = value if factor == 1 else value * factor
        return
    before = part.group.get(key)
    given, given_version = part.given.get(key, (None, 0))
    untouched = before is not None and given is before and given_version == times_written(before)
    source = part.sources.get(key)
    known = source and source[0] is value and source[1:] == (times_written(value), factor)
    # A CUDA graph records the copying, so that a replay goes by the rate that the user has set.
    if untouched and known and not is_captured():
        return
    if not isinstance(before, Tensor) or before is value or not alike(before, value):
        before = value.detach().clone()
    part.group[key] = before.copy_(value.detach() if factor == 1 else value.detach() * factor)
    part.sources[key] = (value, times_written(value), factor)


def _set_own(part: _Part, key: str, own: _Own, value: Any) -> None:
    """Set a part's own value; a new part takes the value of the parameters without a factor."""
    held = own.values.get(part.unit, own.values.get(None, [value]))
    part.sources.pop(key, None)
    if not held:
        part.group.pop(key, None)
    elif isinstance(value, Tensor) and not isinstance(held[0], Tensor):
        part.group[key] = torch.full_like(value, held[0])
    elif part.group.get(key, _ABSENT) is not held[0]:
        part.group[key] = held[0] if part.unit in own.values else copied(held[0])


def _hand_back(base: Group, key: str, value: Any, *, in_place: bool) -> None:
    """Write a value into the user's group the way the optimizer did it, in place or not."""
    if value is _ABSENT:
        base.pop(key, None)
    elif in_place and isinstance(value, Tensor) and isinstance(base.get(key), Tensor):
        base[key].detach().copy_(value.detach())
    else:
        base[key] = copied(value)


def _value_of(given: tuple[Any, int]) -> Any:
    """Return the value from the start of a step; NaN, equal to nothing, if it was written since."""
    value, version = given
    return value if times_written(value) == version else math.nan
