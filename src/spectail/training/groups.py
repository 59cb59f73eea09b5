"""An optimizer's groups, split by unit for the time of a step: nothing outside of the step ever sees the split.

The split groups are built once and refreshed from the user's groups before every step, so that schedulers, warm-up,
logging and state dicts work on the user's groups alone. The list ``optimizer.param_groups`` stays the same object,
for wrappers hold on to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from spectail.errors import TrainingError

Group: TypeAlias = dict[str, Any]


class SplitGroups:
    """The split of one optimizer's groups; ``enter`` puts it in place of them, ``leave`` puts them back.

    ``option`` is what is scaled (``lr``), ``unit_of`` gives the number of a parameter's unit by its ``id``; parameters
    that are not in it keep their group's own value.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, option: str, unit_of: Mapping[int, int]) -> None:
        self.optimizer, self.option, self.unit_of = optimizer, option, dict(unit_of)
        self._base: list[Group] = []
        self._members: list[list[int]] = []
        self._split: list[tuple[Group, int, int | None]] = []
        self._given: list[Group] = []
        self._versions: list[int] = []
        self.inside = False
        """Whether the split groups are in place."""
        self._known = {id(p) for group in optimizer.param_groups for p in group["params"]}

    def enter(self, factors: Sequence[float]) -> int:
        """Put the split groups in place, ``option`` times the factor of their unit.

        Returns how many parameters have come into the groups since the last step.
        """
        self.restore()
        groups = self.optimizer.param_groups
        added = 0 if self._is_current(groups) else self._build(groups)
        for (group, base, unit), given in zip(self._split, self._given, strict=True):
            _refresh(group, self._base[base], self.option, 1.0 if unit is None else factors[unit])
            given.clear()
            given.update(group)
        self._versions = [_version(group[self.option]) for group, _, _ in self._split]
        groups[:] = [group for group, _, _ in self._split]
        self.inside = True
        return added

    def leave(self) -> None:
        """Put the user's groups back; what the optimizer wrote into all parts of a group is kept in the group.

        Raises:
            TrainingError: it wrote different values into the parts, or into the scaled option.

        """
        self.restore()
        if self._versions != [_version(given[self.option]) for given in self._given]:
            raise TrainingError(_writes(self.optimizer, self.option))
        written: dict[tuple[int, str], Any] = {}
        for (group, base, _), given in zip(self._split, self._given, strict=True):
            for key in group:
                if key in given and group[key] is given[key]:
                    continue
                if key == self.option or not _same(written.setdefault((base, key), group[key]), group[key]):
                    raise TrainingError(_writes(self.optimizer, key))
        for (base, key), value in written.items():
            self._base[base][key] = value

    def restore(self) -> None:
        """Put the user's groups back where a step that raised has left the split ones."""
        if self.inside:
            self.optimizer.param_groups[:] = self._base
            self.inside = False

    def _is_current(self, groups: Sequence[Group]) -> bool:
        return len(groups) == len(self._base) and all(
            group is base and list(map(id, group["params"])) == members
            for group, base, members in zip(groups, self._base, self._members, strict=True)
        )

    def _build(self, groups: Sequence[Group]) -> int:
        self._base = list(groups)
        self._members = [[id(p) for p in group["params"]] for group in groups]
        self._split = []
        for i, group in enumerate(groups):
            parts: dict[int | None, list[Tensor]] = {}
            for parameter in group["params"]:
                parts.setdefault(self.unit_of.get(id(parameter)), []).append(parameter)
            self._split += [({"params": parameters}, i, unit) for unit, parameters in (parts or {None: []}).items()]
        self._given = [{} for _ in self._split]
        new = {key for members in self._members for key in members} - self._known
        self._known |= new
        return len(new)


def _refresh(group: Group, base: Group, option: str, factor: float) -> None:
    """Give a split group what its base group holds now, the option scaled."""
    for key in group.keys() - base.keys():
        del group[key]
    for key, value in base.items():
        if key == option:
            group[key] = _scaled(value, factor, group.get(key))
        elif key != "params":
            group[key] = value


def _scaled(value: Any, factor: float, before: Any) -> Any:
    """The value times the factor; a tensor in a copy of its own, written in place where there is one already.

    One tensor may be shared by all groups, and compiled or captured steps keep its address.
    """
    if not isinstance(value, Tensor):
        return value if factor == 1 else value * factor
    if not (isinstance(before, Tensor) and before.device == value.device and before.dtype == value.dtype):
        before = value.detach().clone()
    return before.copy_(value.detach() if factor == 1 else value.detach() * factor)


def does_nothing(optimizer: torch.optim.Optimizer) -> bool:
    """Whether all rates and all gradients are zero: such a step is none of the training's.

    ``torch.distributed.checkpoint`` makes one to initialise an optimizer's state. A rate that lies on an accelerator
    counts as one above zero, for looking at it would make every step wait.
    """
    if any(_on_accelerator(rate) or bool(rate) for rate in (group.get("lr", 1.0) for group in optimizer.param_groups)):
        return False
    gradients = (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
    # Of a gradient that is spread over processes all of them must see the same.
    return not any(g.is_sparse or bool((g.full_tensor() if hasattr(g, "full_tensor") else g).any()) for g in gradients)


def _on_accelerator(rate: Any) -> bool:
    return isinstance(rate, Tensor) and rate.device.type != "cpu"


def _version(value: Any) -> int:
    """How often a tensor has been written in place; 0 for a number."""
    return value._version if isinstance(value, Tensor) else 0


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or torch.equal(a, b)
    return a is b or bool(a == b)


def _writes(optimizer: torch.optim.Optimizer, key: str) -> str:
    return (
        f"{type(optimizer).__name__} writes {key!r} into its groups during step(), differently for each of the parts "
        "that a Balancer makes of a group, so it cannot be balanced; set it from outside of step()"
    )
