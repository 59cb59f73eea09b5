"""Try out an optimizer before training: make a few steps on tiny copies of its split groups.

Only a trial shows early what an optimizer does with its groups. It may refuse rates that differ
(D-Adaptation and Prodigy estimate one rate for all), set the rates itself, count its groups, or
never use the rate (Rprop after its first step). The copies have their own parameters, gradients and
state, so the user's are not touched. An optimizer that holds anything that cannot be copied safely
(a model, a parameter outside of its groups) is not tried.
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

from spectail.basics.texts import type_and_line
from spectail.errors import TrainingError
from spectail.training.groups import BY_PARAMETER, Group, SplitGroups
from spectail.training.step_hooks import look_at_steps
from spectail.training.steps import Steps
from spectail.training.wrappers import Optimizers

SIDE = 4
"""The longest side of a tiny parameter."""
LARGEST = 4096
"""The most numbers in a tensor that is copied; larger ones are such as averaged weights."""
LOWEST = 1e-2
"""The lowest rate of a trial; a warm-up begins at 0, where nothing would move."""
STEPS = 2
"""The number of steps that are made with the same factors."""
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
    """The result of a trial; it is empty if the optimizer could not be tried."""

    whole: frozenset[int] = frozenset()
    """The ``id`` of the wrappers that can have the split groups during their whole step."""
    refusal: str = ""
    """The reason why the optimizer cannot be balanced; empty if it can."""
    without_effect: bool = False
    """Whether half of the rate moved all parameters the same way as the full rate."""


def try_out(optimizers: Optimizers, option: str) -> Trial:
    """Try the outermost optimizer that can be tried, with all optimizers inside of it.

    With several processes nothing is tried: an optimizer that exchanges gradients would wait
    forever for parameters that the other processes do not have.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return Trial()
    parameters = {
        id(p): p
        for member in optimizers.members
        for group in member.param_groups
        for p in group["params"]
    }
    # Restored at the end, so a Balancer may be built between backward and step.
    gradients = [(p, p.grad) for p in parameters.values()]
    try:
        # Without a gradient no optimizer moves a parameter, should a step reach the user's own.
        for p in parameters.values():
            p.grad = None
        return _first_that_can_be_tried(optimizers, option)
    finally:
        for p, gradient in gradients:
            p.grad = gradient


def _first_that_can_be_tried(optimizers: Optimizers, option: str) -> Trial:
    """Go inwards until an optimizer can be copied and stepped; empty if none can."""
    # Without its outermost wrapper an optimizer may be copied that otherwise could not.
    for start in range(len(optimizers.members)):
        within = Optimizers(optimizers.members[start:], optimizers.innermost)
        # Float64 makes differences exact; some optimizers accept only the parameters' own type.
        for wide in (True, False):
            try:
                with _apart() as allowed:
                    unsplit = _unsplit(within, option, allowed, wide=wide)
            except Exception:  # noqa: BLE001 - whatever it raises, it cannot be tried
                continue
            return _tried(within, option, unsplit)
    return Trial()


def _unsplit(optimizers: Optimizers, option: str, allowed: set[int], *, wide: bool) -> _Unsplit:
    """Step copies without a split: plainly, or with a closure if the optimizer needs one."""
    copies = _Copies(optimizers, option, allowed, wide=wide)
    before = copies.values()
    try:
        copies.step("plain", 1.0, 1.0)
    except Exception:  # noqa: BLE001 - the other way is tried
        copies.step("closure", 1.0, 1.0)
        return _Unsplit("closure", before, copies.values(), wide)
    return _Unsplit("plain", before, copies.values(), wide)


def _tried(optimizers: Optimizers, option: str, unsplit: _Unsplit) -> Trial:
    """Try split groups for the wrappers too, and then for the innermost optimizers alone."""
    innermost = {id(one) for one in optimizers.innermost}
    around = frozenset(id(member) for member in optimizers.members if id(member) not in innermost)
    # The wrappers first: those that use the rate themselves (Lookahead) need the split.
    found = _outcome(optimizers, option, unsplit, around)
    # A wrapper may work with split groups only as long as it does not see them.
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
    """Step with all factors 1, then with different factors, and compare the pairs.

    The two parameters of a pair are equal, and stay equal exactly if both are stepped alike.
    """

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
        # In turn: fewer parameters move with the split than without; the factors act, or nothing
        # can be concluded; both orders of factors move all alike, so the factors have no effect.
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
        return Trial(
            refusal=f"split into groups by layer, its step() raises {type_and_line(error)}"
        )


def _alike(pairs: _Values) -> bool:
    """Whether both parameters of every pair are equal."""
    return all(torch.equal(first, second) for first, second in pairs)


def _still(some: _Values, others: _Values) -> int:
    """Count the parameters that are equal in both."""
    pairs = zip(some, others, strict=True)
    return sum(torch.equal(a, b) for pair, other in pairs for a, b in zip(pair, other, strict=True))


_Values: TypeAlias = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Unsplit:
    """The steps of an optimizer without a Balancer, to compare with."""

    call: str
    """How it is called: ``plain``, or with a ``closure``."""
    before: _Values
    after: _Values
    wide: bool
    """Whether the tiny parameters are float64, or of the user's own type."""


class _UntriableError(Exception):
    """Raised for an object that cannot be copied without touching the user's own."""


class _Copies:
    """Copies of optimizers in which every group holds a pair of equal tiny parameters."""

    def __init__(
        self, optimizers: Optimizers, option: str, allowed: set[int], *, wide: bool
    ) -> None:
        self.optimizers, self.option, self.wide = optimizers, option, wide
        self.made: dict[int, Any] = {
            id(member): object.__new__(type(member)) for member in optimizers.members
        }
        """Copies by the ``id`` of their original: optimizers, groups, lists of groups, states."""
        self.tiny: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
        """Pairs by the ``id`` of the parameter whose shape they follow."""
        self.factors: dict[str, float] = {}
        allowed.update(id(self.made[id(member)]) for member in optimizers.members)
        for member in optimizers.members:
            groups = [self._group(group) for group in member.param_groups]
            if "param_groups" in vars(member):
                self.made[id(member.param_groups)] = groups
        for member in optimizers.members:
            vars(self.made[id(member)]).update(self._attributes(member))
        self.outer = self.made[id(optimizers.members[0])]
        # Schedule-free optimizers step in training mode only.
        if callable(getattr(type(self.outer), "train", None)):
            self.outer.train()

    def split(self, whole: frozenset[int]) -> None:
        """Split the groups from the next step on, as under a Balancer."""
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
        """Make a few steps with one factor for the first and one for the second of each pair."""
        self.factors = dict(zip(_PAIR, factors, strict=True))
        for number in range(STEPS):
            self._gradients(number)
            if call == "plain":
                self.outer.step()
            else:
                self.outer.step(lambda number=number: self._gradients(number))

    def values(self) -> _Values:
        """Return copies of all pairs."""
        return [
            (first.detach().clone(), second.detach().clone())
            for first, second in self.tiny.values()
        ]

    def _gradients(self, number: int) -> Tensor:
        """Set the gradients of step ``number``, the same for both of a pair; returns a loss."""
        for pair in self.tiny.values():
            # Small beside the values, so that weight decay shows in the sign of their sum too.
            noise = torch.randn(pair[0].shape, generator=torch.Generator().manual_seed(number)) / 64
            for p in pair:
                p.grad = noise.to(device=p.device, dtype=p.dtype)
        return torch.tensor(1.0)

    def _group(self, group: Group) -> Group:
        """Copy a group: the same options, and a pair as its parameters."""
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
        """Make a pair with as many dimensions as a parameter, which optimizers may depend on."""
        exact = torch.complex128 if like.is_complex() else torch.float64
        dtype = exact if self.wide else like.dtype
        shape = [min(side, SIDE) for side in like.shape]
        # From a fixed seed: both of a pair and all trials begin alike.
        values = torch.randn(shape, generator=torch.Generator().manual_seed(7))
        values = values.to(device=like.device, dtype=dtype)
        self.tiny[id(like)] = nn.Parameter(values.clone()), nn.Parameter(values.clone())
        return self.tiny[id(like)]

    def _attributes(self, member: Any) -> Iterator[tuple[str, Any]]:
        """Yield copies of an optimizer's attributes, without the user's hooks."""
        for name, value in vars(member).items():
            if "_hooks" in name:
                yield name, OrderedDict()
            elif name == "state":
                yield name, self._state(value)
            elif name != "step":  # a scheduler's wrapper, bound to the user's optimizer
                yield name, self._copy(value)

    def _state(self, state: Mapping[Any, Any]) -> Any:
        """Copy the state of the parameters, cut to the size of the tiny ones."""
        if id(state) not in self.made:
            cut: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
            for parameter, known in state.items():
                for p in self.tiny.get(id(parameter), ()):
                    cut[p] = {key: self._cut(value, parameter, p) for key, value in known.items()}
            self.made[id(state)] = cut
        return self.made[id(state)]

    def _cut(self, value: Any, parameter: Tensor, tiny: Tensor) -> Any:
        # State with the parameter's shape belongs to its single numbers (momentum), other state is
        # copied.
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            return value.detach()[tuple(slice(side) for side in tiny.shape)].clone()
        return self._copy(value)

    def _copy(self, value: Any) -> Any:
        """Copy a value so that the copy shares nothing mutable; _UntriableError if impossible."""
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
    """Isolate a trial: random states are restored, warnings hidden, real optimizers refused.

    Yields a set that takes the ``id`` of the optimizers that may step.
    """
    allowed: set[int] = set()

    def refuse(optimizer: Any) -> None:
        if id(optimizer) not in allowed:
            raise _UntriableError

    states = random.getstate(), np.random.get_state()
    end = look_at_steps(refuse)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fork_rng itself warns where there are several GPUs
            with torch.random.fork_rng(), torch.enable_grad():
                yield allowed
    finally:
        end()
        random.setstate(states[0])
        np.random.set_state(states[1])
