"""A trial of an optimizer before training: a few steps on tiny copies of its split groups.

Only a trial tells early what an optimizer does with its groups: whether it refuses rates that
differ (D-Adaptation and Prodigy estimate one rate for all), sets them itself, counts its groups, or
never looks at the rate (Rprop after its first step). The copies have parameters, gradients and
state of their own; the user's are not touched, and an optimizer that holds anything that cannot be
copied safely (a model, a parameter outside of its groups) is not tried.
"""

from __future__ import annotations

import copy
import enum
import logging
import random
import types
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from spectail.errors import TrainingError
from spectail.training.groups import BY_PARAMETER, Group, SplitGroups
from spectail.training.onlook import look_at_steps
from spectail.training.steps import Steps
from spectail.training.wrappers import Optimizers

SIDE = 4
"""Longest side of a tiny parameter."""
LARGEST = 4096
"""Tensors with more numbers, such as averaged weights, are not copied."""
LOWEST = 1e-2
"""A rate below it is tried as this one: a warm-up begins at 0."""
STEPS = 2
_PAIR = ("first", "second")
_VALUES = (
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    enum.Enum,
    torch.dtype,
    torch.device,
    torch.Size,
)
_CODE = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, logging.Logger)


@dataclass(frozen=True)
class Trial:
    """What a trial has shown; an optimizer that could not be tried has an empty one."""

    whole: frozenset[int] = frozenset()
    """The ``id`` of the wrappers that can have the split groups during all of their own step."""
    refusal: str = ""
    """Why it cannot be balanced."""
    without_effect: bool = False
    """Whether no parameter moved in another way at half of the rate."""


def try_out(optimizers: Optimizers, option: str) -> Trial:
    """Try the outermost optimizer that can be tried, with all those inside of it.

    With several processes nothing is tried: an optimizer that exchanges gradients would wait for
    parameters that the others do not have.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return Trial()
    parameters = {
        id(p): p
        for member in optimizers.members
        for group in member.param_groups
        for p in group["params"]
    }
    gradients = [(p, p.grad) for p in parameters.values()]
    try:
        for p in (
            parameters.values()
        ):  # without a gradient no optimizer moves one, however it may be reached
            p.grad = None
        return _first_that_can_be_tried(optimizers, option)
    finally:
        for p, gradient in gradients:
            p.grad = gradient


def _first_that_can_be_tried(optimizers: Optimizers, option: str) -> Trial:
    for start in range(len(optimizers.members)):
        within = Optimizers(optimizers.members[start:], optimizers.innermost)
        for wide in (True, False):
            try:
                with _apart() as allowed:
                    unsplit = _unsplit(within, option, allowed, wide=wide)
            except Exception:  # noqa: BLE001 - whatever it raises, it cannot be tried
                continue
            return _tried(within, option, unsplit)
    return Trial()


def _unsplit(optimizers: Optimizers, option: str, allowed: set[int], *, wide: bool) -> _Unsplit:
    """Steps as without a Balancer: plain ones, or with a closure where it needs one."""
    copies = _Copies(optimizers, option, allowed, wide=wide)
    before = copies.values()
    try:
        copies.step("plain", 1.0, 1.0)
    except Exception:  # noqa: BLE001 - the other way is tried
        copies.step("closure", 1.0, 1.0)
        return _Unsplit("closure", before, copies.values(), wide)
    return _Unsplit("plain", before, copies.values(), wide)


def _tried(optimizers: Optimizers, option: str, unsplit: _Unsplit) -> Trial:
    """Whether it steps with split groups, in place for the wrappers or for the innermost alone."""
    innermost = {id(one) for one in optimizers.innermost}
    around = frozenset(id(member) for member in optimizers.members if id(member) not in innermost)
    found = _outcome(optimizers, option, unsplit, around)
    if found.refusal and around:
        found = _outcome(optimizers, option, unsplit, frozenset())
    if found.refusal:
        return Trial(
            refusal=f"{type(optimizers.members[0]).__name__} cannot be balanced by {option!r}: "
            f"{found.refusal}"
        )
    return found


def _outcome(
    optimizers: Optimizers, option: str, unsplit: _Unsplit, whole: frozenset[int]
) -> Trial:
    """Step with all factors 1, then with different ones."""

    def moved(first: float, second: float) -> tuple[_Values, _Values]:
        with _apart() as allowed:
            copies = _Copies(optimizers, option, allowed, wide=unsplit.wide)
            copies.split(whole)
            copies.step(unsplit.call, 1.0, 1.0)
            before = copies.values()
            copies.step(unsplit.call, first, second)
            return before, copies.values()

    try:
        before, after = moved(1.0, 0.5)
        if _still(unsplit.before, before) > _still(unsplit.before, unsplit.after):
            return Trial(refusal="split into groups by layer, it steps only some of them")
        if not _alike(before) or not _alike(after) or _still(before, after):
            return Trial(whole)
        if _still(after, moved(0.5, 1.0)[1]) == 2 * len(after):
            return Trial(whole, without_effect=True)
        return Trial(refusal=f"it takes the {option} of one group for all of them")
    except _UntriableError:
        return Trial()
    except TrainingError as error:
        return Trial(refusal=str(error))
    except Exception as error:  # noqa: BLE001 - without the split it raises nothing
        first = str(error).strip().partition("\n")[0]
        return Trial(
            refusal=f"split into groups by layer, its step() raises {type(error).__name__}: {first}"
        )


def _alike(pairs: _Values) -> bool:
    """Whether both of every pair are the same."""
    return all(torch.equal(first, second) for first, second in pairs)


def _still(some: _Values, others: _Values) -> int:
    """How many of the parameters are the same in both."""
    pairs = zip(some, others, strict=True)
    return sum(torch.equal(a, b) for pair, other in pairs for a, b in zip(pair, other, strict=True))


_Values: TypeAlias = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Unsplit:
    """What an optimizer does without a Balancer: how it is called, pairs before and after."""

    call: str
    before: _Values
    after: _Values
    wide: bool


class _UntriableError(Exception):
    """Something that cannot be copied without touching what the user has."""


class _Copies:
    """Copies of optimizers whose groups hold two tiny parameters each, alike in all: a pair."""

    def __init__(
        self, optimizers: Optimizers, option: str, allowed: set[int], *, wide: bool
    ) -> None:
        self.optimizers, self.option, self.wide = optimizers, option, wide
        self.made: dict[int, Any] = {
            id(member): object.__new__(type(member)) for member in optimizers.members
        }
        """Copies by the ``id`` of what they are copies of: optimizers, groups, lists of groups,
        states.
        """
        self.tiny: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
        """Pairs by the ``id`` of the parameter that they are shaped after."""
        self.factors: dict[str, float] = {}
        allowed.update(id(self.made[id(member)]) for member in optimizers.members)
        for member in optimizers.members:
            groups = [self._group(group) for group in member.param_groups]
            if "param_groups" in vars(member):
                self.made[id(member.param_groups)] = groups
        for member in optimizers.members:
            vars(self.made[id(member)]).update(self._attributes(member))
        self.outer = self.made[id(optimizers.members[0])]
        if callable(
            getattr(type(self.outer), "train", None)
        ):  # schedule-free optimizers step in this mode alone
            self.outer.train()

    def split(self, whole: frozenset[int]) -> None:
        """From now on step as under a Balancer."""
        members, innermost = self.optimizers.members, self.optimizers.innermost
        unit_of = {
            id(p): unit for pair in self.tiny.values() for p, unit in zip(pair, _PAIR, strict=True)
        }
        Steps(
            Optimizers(
                tuple(self.made[id(member)] for member in members),
                tuple(self.made[id(member)] for member in innermost),
            ),
            SplitGroups(self.option, unit_of),
            whole=[id(self.made[key]) for key in whole],
            factors=lambda: self.factors,
            done=lambda: None,
        )

    def step(self, call: str, *factors: float) -> None:
        """A few steps at the factors of the first and the second of each pair."""
        self.factors = dict(zip(_PAIR, factors, strict=True))
        for number in range(STEPS):
            self._gradients(number)
            if call == "plain":
                self.outer.step()
            else:
                self.outer.step(lambda number=number: self._gradients(number))

    def values(self) -> _Values:
        """The pairs as they are now."""
        return [
            (first.detach().clone(), second.detach().clone())
            for first, second in self.tiny.values()
        ]

    def _gradients(self, number: int) -> Tensor:
        for pair in self.tiny.values():
            # Small beside the values, so that weight decay shows in the sign of their sum too.
            noise = torch.randn(pair[0].shape, generator=torch.Generator().manual_seed(number)) / 64
            for p in pair:
                p.grad = noise.to(device=p.device, dtype=p.dtype)
        return torch.tensor(1.0)

    def _group(self, group: Group) -> Group:
        """A group of the same options with a pair of its own."""
        if id(group) not in self.made:
            if not group["params"]:
                raise _UntriableError
            made: Group = {
                key: self._copy(value) for key, value in group.items() if key not in BY_PARAMETER
            }
            for key in {"lr", self.option} & made.keys():
                if 0 <= float(made[key]) < LOWEST:
                    made[key] = made[key] * 0 + LOWEST
            made["params"] = list(self._pair(max(group["params"], key=lambda p: p.ndim)))
            self.made[id(group)] = made
        found: Group = self.made[id(group)]
        return found

    def _pair(self, like: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
        exact = torch.complex128 if like.is_complex() else torch.float64
        dtype = exact if self.wide else like.dtype
        shape = [min(side, SIDE) for side in like.shape]
        values = torch.randn(shape, generator=torch.Generator().manual_seed(7))
        values = values.to(device=like.device, dtype=dtype)
        self.tiny[id(like)] = nn.Parameter(values.clone()), nn.Parameter(values.clone())
        return self.tiny[id(like)]

    def _attributes(self, member: Any) -> Iterator[tuple[str, Any]]:
        for name, value in vars(member).items():
            if "_hooks" in name:
                yield name, OrderedDict()
            elif name == "state":
                yield name, self._state(value)
            elif name != "step":  # what a scheduler has put around it
                yield name, self._copy(value)

    def _state(self, state: Mapping[Any, Any]) -> Any:
        """What the optimizer knows of its parameters, cut to the size of the tiny ones."""
        if id(state) not in self.made:
            cut: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
            for parameter, known in state.items():
                for p in self.tiny.get(id(parameter), ()):
                    cut[p] = {key: self._cut(value, parameter, p) for key, value in known.items()}
            self.made[id(state)] = cut
        return self.made[id(state)]

    def _cut(self, value: Any, parameter: Tensor, tiny: Tensor) -> Any:
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            return value.detach()[tuple(slice(side) for side in tiny.shape)].clone()
        return self._copy(value)

    def _copy(self, value: Any) -> Any:
        """A copy that shares nothing that can be changed."""
        if id(value) in self.made:
            return self.made[id(value)]
        if isinstance(value, _VALUES + _CODE):
            return value
        if (
            isinstance(value, Tensor)
            and not isinstance(value, nn.Parameter)
            and value.numel() <= LARGEST
        ):
            return value.detach().clone()
        if isinstance(value, dict):
            made = copy.copy(value)
            made.clear()
            made.update((self._copy(key), self._copy(inner)) for key, inner in value.items())
            return made
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(self._copy(inner) for inner in value)
        if isinstance(value, types.MethodType) and id(value.__self__) in self.made:
            return types.MethodType(value.__func__, self.made[id(value.__self__)])
        if isinstance(value, torch.Generator):
            return torch.Generator(value.device).set_state(value.get_state())
        raise _UntriableError


@contextmanager
def _apart() -> Iterator[set[int]]:
    """Hide what happens inside: no random number is used up, no real optimizer steps.

    Gives the set of the ``id`` of those that may step.
    """
    allowed: set[int] = set()

    def refuse(optimizer: Any) -> None:
        if id(optimizer) not in allowed:
            raise _UntriableError

    states = random.getstate(), np.random.get_state()
    end = look_at_steps(refuse)
    try:
        with torch.random.fork_rng(), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield allowed
    finally:
        end()
        random.setstate(states[0])
        np.random.set_state(states[1])
