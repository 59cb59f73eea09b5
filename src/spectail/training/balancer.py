"""Balancer: every layer trains at the rate that its alpha asks for, in any loop, with any optimizer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from spectail.errors import TrainingError
from spectail.records import LayerRecord
from spectail.training import measuring
from spectail.training.factors import factors_of
from spectail.training.groups import SplitGroups, does_nothing
from spectail.training.history import History, Update
from spectail.training.rules import Rule, as_rule
from spectail.training.scope import find_scope, listed
from spectail.training.state import FORMAT, Moving, check_state, signature

_LOG = logging.getLogger(__name__)


class Balancer:
    """Gives every layer its learning rate, or weight decay, for the time of each ``optimizer.step()``.

    ``rule`` is ``tempbalance``, ``tb-sigmoid``, ``llr`` or ``alphadecay``, with a map where it is not the default
    (``tempbalance:sqrt``), or a type of ``spectail.training.rules`` with all options. After every ``every`` steps of
    the optimizer the weights are measured and the factors change; with ``every=None`` only when ``update`` is called.
    Until the first measurement all factors are 1.

    The optimizer's groups are never changed: schedulers, loggers and state dicts go on with the base values. Build it
    after the model has been wrapped (DDP, ``fully_shard``) and the optimizer made, and save ``state_dict`` with theirs.

    With ``background`` a copy is measured in a thread while training goes on, and its factors are taken over at the
    next measurement, so that a resumed run still is the same. ``device`` is where to measure (default: the GPU for a
    model on one, else the CPU); ``group`` the processes that share the layers out (default: those of DDP or of the
    DTensors); ``on_update`` is called with every ``Update``.

    Raises TrainingError with one clear line where model, optimizer and rule do not go together.

    >>> model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(5)])
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> balancer = Balancer(model, optimizer, "tempbalance", every=100)
    >>> balancer.factors, balancer.left_out
    ({'1': 1.0, '2': 1.0, '3': 1.0}, {'0': 'the first layer', '4': 'the last layer'})
    >>> update = balancer.update()  # now, without waiting for 100 steps
    >>> min(balancer.factors.values()), max(balancer.factors.values())
    (0.5, 1.5)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rule: Rule | str,
        *,
        every: int | None,
        background: bool = False,
        device: str | None = None,
        group: Any = None,
        on_update: Callable[[Update], None] | None = None,
    ) -> None:
        _check(model, every)
        self.model, self.optimizer, self.rule = model, unwrapped(optimizer), as_rule(rule)
        self.every, self.background, self.on_update = every, background, on_update
        self.steps = 0
        """Steps of the optimizer so far, without those that only initialise its state."""
        self._plan = measuring.plan_of(model, self.rule.spec, device)
        self._group = group if group is not None else measuring.group_of(model)
        if background and self._group is not None:
            raise TrainingError("background measuring works in one process; several share the layers out instead")
        self._scope = find_scope(model, self._plan.layers, self.optimizer, self.rule)
        self._lacking: dict[str, str] = {}
        self._moving = Moving(*((1.0,) * len(self._scope.units),) * 2)
        self._pending: tuple[int, Future[list[LayerRecord]]] | None = None
        self._warned: set[str] = set()
        self.history = History(self._plan.run, self.rule.settings())
        """What was measured so far."""
        self._groups = SplitGroups(self.optimizer, self.rule.option, self._scope.unit_of)
        self._hooks = self._hooked()
        self._tell_scope()

    @property
    def factors(self) -> dict[str, float]:
        """The factor of every layer that takes part, as the next step uses it."""
        names = (unit.name for unit in self._scope.units)
        return dict(zip(names, self._moving.at(self.steps, self.rule.transition), strict=True))

    @property
    def left_out(self) -> dict[str, str]:
        """The layers that train at the base value, and those that keep the factor they had, and why."""
        return {**self._scope.left_out, **self._lacking}

    def update(self) -> Update | None:
        """Measure the weights as they are and change the factors from the next step on; every process must call it.

        In the background: take over what was measured since the last call, and start to measure the weights as they
        are now. Returns what was taken over, None for nothing yet.
        """
        names = [name for unit in self._scope.units for name in unit.layers]
        layers = measuring.current_layers(self.model, names)
        if not self.background:
            return self._take(self.steps, measuring.measure_now(self._plan, layers, self._group))
        taken = self._take(self._pending[0], self._pending[1].result()) if self._pending else None
        self._pending = self.steps, measuring.measure_beside(self._plan, layers)
        return taken

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, as plain values; waits for what is measured in the background."""
        pending = self._pending and {
            "step": self._pending[0],
            "records": [record.to_dict() for record in self._pending[1].result()],
        }
        return {
            "format": FORMAT,
            "rule": self.rule.settings(),
            "layers": signature(self._scope.units),
            "window": self._plan.run.window,
            "steps": self.steps,
            "start": list(self._moving.start),
            "goal": list(self._moving.goal),
            "since": self._moving.since,
            "lacking": dict(self._lacking),
            "warned": sorted(self._warned),
            "pending": pending,
            "history": self.history.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the steps, factors and window of the run it was saved in.

        Warns where the rule had other settings, which then count from the next measurement on.
        Raises TrainingError for the state of another model, and changes nothing then.
        """
        differing = check_state(state, self.state_dict())
        history = History.from_dict(state["history"])
        if differing:
            told = ", ".join(f"{key} {state['rule'].get(key)!r} there" for key in differing)
            warnings.warn(
                f"the Balancer's state was saved with other settings ({told}); those given here count from the next "
                "measurement on",
                stacklevel=2,
            )
        self.steps, self.history = state["steps"], history
        if "spec" not in differing:
            self._plan = replace(self._plan, run=replace(self._plan.run, window=state["window"]))
        self._moving = Moving(tuple(state["start"]), tuple(state["goal"]), state["since"])
        self._lacking, self._warned = dict(state["lacking"]), set(state["warned"])
        self._pending = None
        if pending := state["pending"]:
            known: Future[list[LayerRecord]] = Future()
            known.set_result([LayerRecord.from_dict(record) for record in pending["records"]])
            self._pending = pending["step"], known

    def remove(self) -> None:
        """Take the Balancer off the optimizer, which then trains all layers at the base value."""
        self._groups.restore()
        for hook in self._hooks:
            hook.remove()

    def summary(self) -> str:
        """A few lines: the rule, how many layers take part, what stays at the base value and why."""
        units = self._scope.units
        when = f"measured every {self.every} steps" if self.every else "measured when update() is called"
        followers = sum(len(unit.followers) for unit in units)
        lines = [
            f"{self.rule.name} ({self.rule.map}) on {self.rule.option}: {len(units)} layers with {followers} norms "
            f"and biases, {when}, window {self._plan.run.window or 'of each layer'}"
        ]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(name)
        return "\n".join([*lines, *(f"at the base value, {why}: {listed(names)}" for why, names in reasons.items())])

    def _hooked(self) -> list[Any]:
        hooks = self.optimizer._optimizer_step_pre_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), Balancer) for hook in hooks):
            raise TrainingError("the optimizer has a Balancer already: call its remove() before building another")
        return [
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
            self.optimizer.register_state_dict_pre_hook(lambda _: self._groups.restore()),
            self.optimizer.register_load_state_dict_pre_hook(lambda *_: self._groups.restore()),
        ]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _is_captured():
            _warn(
                "a captured step runs no hooks when it is replayed: the factors stay those of the capture and nothing "
                "is measured; call update() yourself and capture again after it"
            )
        self._enter()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            return None

        def closure_outside() -> Any:
            """A closure is the user's code (Lightning runs the training step in it), so it sees the user's groups."""
            self._groups.restore()
            result = closure()
            self._enter()
            return result

        if len(args) > 1:
            return (args[0], closure_outside, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure_outside}

    def _enter(self) -> None:
        added = self._groups.enter(self._moving.at(self.steps, self.rule.transition))
        if added:
            _warn(
                f"{added} parameters came into the optimizer after the Balancer was built: they train at their group's "
                f"own {self.rule.option}; build a new Balancer to include them"
            )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not self._groups.inside:  # the end of a step() that has called its parent's step()
            return
        self._groups.leave()
        if does_nothing(optimizer):
            return
        self.steps += 1
        if self.every and self.steps % self.every == 0:
            self.update()

    def _take(self, step: int, records: Sequence[LayerRecord]) -> Update:
        """Turn what was measured after ``step`` steps into the factors from now on; without an alpha the last stays."""
        units = self._scope.units
        found = factors_of(units, {record.name: record for record in records}, self.rule)
        goal = tuple(found.values.get(unit.name, before) for unit, before in zip(units, self._moving.goal, strict=True))
        self._moving = Moving(self._moving.at(self.steps, self.rule.transition), goal, self.steps)
        self._lacking = dict(found.lacking)
        self._tell_lacking(step, records)
        factors = {unit.name: factor for unit, factor in zip(units, goal, strict=True)}
        update = self.history.add(step, self.steps, records, alphas=dict(found.alphas), factors=factors)
        if self.on_update:
            self.on_update(update)
        return update

    def _tell_scope(self) -> None:
        _LOG.info("%s", self.summary())
        if self._scope.forgotten:
            _warn(
                f"{len(self._scope.forgotten)} layers of the model are not in the optimizer and are not measured: "
                f"{listed(self._scope.forgotten)}"
            )

    def _tell_lacking(self, step: int, records: Sequence[LayerRecord]) -> None:
        """Warn of layers that have lost their alpha, once each, and where there is none at all."""
        if len(self._lacking) == len(self._scope.units) and "all" not in self._warned:
            self._warned.add("all")
            name, reason = next(iter(self._lacking.items()))
            _warn(f"not one layer has an alpha at step {step}, so that all factors stay; {name}: {reason}")
            return
        failed = {record.name for record in records if record.status == "failed"}
        for unit in self._scope.units:
            broken = failed.intersection(unit.layers)
            if unit.name in self._lacking and broken and unit.name not in self._warned:
                self._warned.add(unit.name)
                _warn(f"{unit.name} has no alpha at step {step} and keeps its factor: {self._lacking[unit.name]}")


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside of what accelerate or Lightning put around it; TrainingError for anything else."""
    inner = optimizer
    while inner is not None:
        if isinstance(inner, torch.optim.Optimizer) and hasattr(inner, "_optimizer_step_pre_hooks"):
            return inner
        inner = getattr(inner, "optimizer", None)
    raise TrainingError(
        f"expected a torch.optim.Optimizer (a subclass that calls its __init__), not {type(optimizer).__name__}"
    )


def _check(model: Any, every: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TrainingError(f"expected a torch module to balance, not {type(model).__name__}")
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise TrainingError(
            f"every must be a whole number of optimizer steps of at least 1 (len(loader) for once per epoch), or None "
            f"to call update() yourself, not {every!r}"
        )


def _is_captured() -> bool:
    """Whether what runs now is recorded into a CUDA graph."""
    return bool(torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())  # type: ignore[no-untyped-call]


def _warn(text: str) -> None:
    warnings.warn(f"Balancer: {text}", stacklevel=3)
