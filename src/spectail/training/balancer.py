"""The Balancer: train each layer at its own rate, computed from its alpha, in any training loop."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parameter import UninitializedParameter

from spectail.basics.checks import is_whole
from spectail.basics.schema import SchemaError
from spectail.errors import TrainingError
from spectail.results.records import LayerRecord
from spectail.training import measuring
from spectail.training.capture import is_captured
from spectail.training.factors import factors_of
from spectail.training.groups import SplitGroups
from spectail.training.history import History, Update
from spectail.training.idle_step import does_nothing
from spectail.training.log import Log, Writer, as_log
from spectail.training.notices import Notices
from spectail.training.rules import Rule, as_rule
from spectail.training.scope import find_scope, listed, trained_now
from spectail.training.state import (
    FORMAT,
    FactorRamp,
    StoredState,
    check_state,
    read_state,
    signature,
)
from spectail.training.steps import Steps
from spectail.training.trial import try_out
from spectail.training.watch import Watch
from spectail.training.wrappers import Optimizers, find_optimizers

_LOG = logging.getLogger(__name__)


class Balancer:
    """Gives every layer its own learning rate, or weight decay, during ``optimizer.step()``.

    ``rule`` is a name (``tempbalance``, ``tb-sigmoid``, ``llr`` or ``alphadecay``), a name and a
    map (``tempbalance:sqrt``), or an object of a type in ``spectail.training.rules``, which takes
    all options. The weights are measured and the factors change after every ``every`` steps of the
    optimizer; with ``every=None`` only when ``update`` is called. Until the first measurement all
    factors are 1.

    Outside of a step the optimizer's groups hold the base values, so schedulers, loggers and state
    dicts work as before. Build the Balancer after the model is wrapped (DDP, ``fully_shard``) and
    the optimizer exists, and save its ``state_dict`` with theirs. If one optimizer wraps another
    one (SAM, Lookahead), both are followed, whichever is given.

    With ``background`` a thread measures a copy while training goes on. Its factors are applied at
    the next measurement, which is a fixed step, so a resumed run stays the same. ``device`` is the
    device to measure on (default: the GPU if the model is on one, else the CPU). ``group`` is the
    group of processes that share the measuring (default: that of DDP or of the DTensors).
    ``log`` gets the numbers of every measurement, as ``log(values, step=...)``: ``wandb.log``,
    ``mlflow.log_metrics``, ``trackio.log``, a TensorBoard writer or any such function. Of several
    processes only the first logs. ``on_update`` is called with every ``Update``.

    Raises TrainingError with one clear line if model, optimizer and rule do not fit. To find out,
    the optimizer makes a few steps on small copies of its groups.

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
        log: Log | Writer | None = None,
        on_update: Callable[[Update], None] | None = None,
    ) -> None:
        _check(model, every)
        optimizers = find_optimizers(optimizer)
        self.model, self.optimizer, self.rule = model, optimizers.outermost, as_rule(rule)
        self.every, self.background, self.on_update = every, background, on_update
        self._log = None if log is None else as_log(log)
        self.steps = 0
        """The number of optimizer steps so far, without those that only initialise its state."""
        # The window is chosen here and kept, so that alphas of different times can be compared.
        self._plan = measuring.plan_of(model, self.rule.spec, device)
        self._group = group if group is not None else measuring.group_of(model)
        # A collective read in a thread could meet one of training in another order, and hang.
        if background and self._group is not None:
            raise TrainingError(
                "background measuring works in one process; several share the layers out instead"
            )
        self._scope = find_scope(model, self._plan.layers, optimizers, self.rule)
        self._trained: Any = trained_now(model, optimizers, self.rule.option)
        self._lacking: dict[str, str] = {}
        ones = (1.0,) * len(self._scope.units)
        self._ramp = FactorRamp(ones, ones)
        self._pending: tuple[int, Future[list[LayerRecord]]] | None = None
        self.history = History(self._plan.run, self.rule.settings())
        """All measurements so far."""
        self._steps = self._followed(optimizers)
        self._watch = self._watched()
        _LOG.info("%s", self.summary())
        self._notices.scope(self._scope)

    @property
    def factors(self) -> dict[str, float]:
        """The factor of every layer that takes part, as the next step will use it."""
        names = (unit.name for unit in self._scope.units)
        return dict(zip(names, self._ramp.at(self.steps, self.rule.transition), strict=True))

    @property
    def left_out(self) -> dict[str, str]:
        """The layers that train at the base value or keep an old factor, each with the reason."""
        return {**self._scope.left_out, **self._lacking}

    def update(self) -> Update | None:
        """Measure the weights and change the factors from the next step on.

        With several processes all of them must call it. Layers that were unfrozen or added to the
        optimizer since the last time join, and layers that were frozen leave, with one warning
        each.

        With ``background`` the factors of the last background measurement are applied, and a new
        one starts with the present weights. Returns the update that was applied; None if there was
        nothing to apply yet.
        """
        if not self.background:
            self._follow_changes()
            return self._take(
                self.steps, measuring.measure_now(self._plan, self._layers(), self._group)
            )
        # The factors come one measurement late, at a fixed step: how long the thread took must not
        # matter for the result.
        taken = self._take(self._pending[0], self._pending[1].result()) if self._pending else None
        self._follow_changes()
        self._pending = self.steps, measuring.measure_beside(self._plan, self._layers())
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, as plain values.

        If a background measurement is running, this waits for its end.
        """
        pending = self._pending and {
            "step": self._pending[0],
            "records": [record.to_dict() for record in self._pending[1].result()],
        }
        names = [unit.name for unit in self._scope.units]
        self._notices.unstored(self._steps.groups.unstored())
        return {
            "format": FORMAT,
            "rule": self.rule.settings(),
            "layers": signature(self._scope.units),
            "waiting": self._scope.waiting,
            "window": self._plan.run.window,
            "steps": self.steps,
            "start": dict(zip(names, self._ramp.start, strict=True)),
            "goal": dict(zip(names, self._ramp.goal, strict=True)),
            "since": self._ramp.since,
            "lacking": dict(self._lacking),
            "warned": sorted(self._notices.told),
            "groups": self._steps.groups.state(),
            "pending": pending,
            "history": self.history.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: restore its steps, factors and window.

        Warns if the rule of the state had other settings; the present ones count from the next
        measurement on. Raises TrainingError for the state of another model, and changes nothing
        then.
        """
        # All checks come first, so that a state that is refused changes nothing.
        stored = read_state(state)
        differing = check_state(stored, self.state_dict(), signature(self._scope.candidates))
        history, pending = History.from_dict(stored.history), _pending(stored)
        if differing:
            told = ", ".join(f"{key} {stored.rule.get(key)!r} there" for key in differing)
            warnings.warn(
                f"the Balancer's state was saved with other settings ({told}); those given here "
                "count from the next measurement on",
                stacklevel=2,
            )
        self.steps, self.history = stored.steps, history
        # With other settings the stored window may not fit, so this run keeps its own.
        if "spec" not in differing:
            self._plan = replace(self._plan, run=replace(self._plan.run, window=stored.window))
        # The state may be older than a change of what is trained, so nothing counts as known here:
        # the next measurement compares again.
        self._scope, self._trained = self._scope.narrowed(stored.layers), None
        self._steps.groups.assign(self._scope.unit_of)
        self._steps.groups.load_state(stored.groups)
        names = [unit.name for unit in self._scope.units]
        start, goal = (tuple(of[name] for name in names) for of in (stored.start, stored.goal))
        self._ramp = FactorRamp(start, goal, stored.since)
        self._lacking, self._notices.told = dict(stored.lacking), set(stored.warned)
        self._pending = pending

    def __reduce_ex__(self, protocol: object) -> Any:
        """Refuse to be copied or pickled: a copy would follow the steps of no optimizer."""
        raise TrainingError(
            "a Balancer belongs to one optimizer and cannot be copied or pickled: save its "
            "state_dict(), and build another Balancer for the copy"
        )

    def remove(self) -> None:
        """Remove the Balancer; the optimizer then trains all layers at the base value."""
        self._steps.remove()
        self._watch.remove()
        if self.steps and not self.history:
            self._notices.never_measured(self.steps, self.every)

    def summary(self) -> str:
        """Return a few lines: the rule, how many layers take part, and which do not and why."""
        units = self._scope.units
        when = (
            f"measured every {self.every} steps"
            if self.every
            else "measured when update() is called"
        )
        attached = sum(len(unit.attached) for unit in units)
        lines = [
            f"{self.rule.name} ({self.rule.map}) on {self.rule.option}: {len(units)} layers with "
            f"{attached} norms and biases, {when}, "
            f"window {self._plan.run.window or 'of each layer'}"
        ]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"at the base value, {why}: {listed(names)}" for why, names in reasons.items()]
        return "\n".join(lines)

    def _followed(self, optimizers: Optimizers) -> Steps:
        """Try out the optimizers with split groups, and hook on to their steps."""
        # Two Balancers would scale the same groups twice.
        if any(isinstance(hook, Steps) for hook in optimizers.hooks()):
            raise TrainingError(
                "the optimizer has a Balancer already: call its remove() before building another"
            )
        # Before any hook is on: a trial copies the optimizer with all its attributes.
        trial = try_out(optimizers, self.rule.option)
        if trial.refusal:
            raise TrainingError(trial.refusal)
        self._notices = Notices(self.rule.option, type(self.optimizer).__name__, optimizers.held())
        if trial.without_effect:
            self._notices.without_effect()
        groups = SplitGroups(self.rule.option, self._scope.unit_of)
        return Steps(
            optimizers,
            groups,
            whole=trial.whole,
            factors=self._factors_of_step,
            done=self._after_step,
        )

    def _watched(self) -> Watch:
        """Watch one weight, to notice training that goes past the optimizer."""
        held = self._steps.optimizers.held()
        # One weight is enough, and cheap to compare.
        weights = (p for unit in self._scope.units for p in unit.weights if p.requires_grad)
        return Watch(next((p for p in weights if id(p) in held), None), self._notices.unused)

    def _layers(self) -> list[Any]:
        return measuring.current_layers(
            self.model, [name for unit in self._scope.units for name in unit.layers]
        )

    def _factors_of_step(self) -> dict[str, float]:
        if is_captured():
            self._notices.captured()
        return self.factors

    def _after_step(self) -> None:
        self._watch.stepped()
        # A step that is recorded trains nothing yet, and to measure would spoil the recording.
        if is_captured():
            return
        self._notices.groups(self._steps, self._scope)
        # Counting it would move all later measurements of a resumed run by one step.
        if does_nothing(self.optimizer):
            return
        self.steps += 1
        if self.every and self.steps % self.every == 0:
            self.update()

    def _follow_changes(self) -> None:
        """Update the scope if the set of trained layers has changed since the last measurement."""
        optimizers = self._steps.optimizers
        trained = trained_now(self.model, optimizers, self.rule.option)
        if trained == self._trained:
            return
        self._layers()  # raises if the model has lost a layer
        self._trained, before = trained, self._scope
        try:
            # Only the layers are taken from the new plan; the window stays.
            layers = measuring.plan_of(self.model, self.rule.spec, None).layers
            self._scope = find_scope(self.model, layers, optimizers, self.rule)
        except TrainingError as error:
            self._notices.scope_stays(self.steps, error)
            return
        self._ramp = self._ramp.of(before.units, self._scope.units)
        self._steps.groups.assign(self._scope.unit_of)
        self._watch.remove()
        self._watch = self._watched()
        self._notices.changes(before, self._scope, self.steps)

    def _take(self, step: int, records: Sequence[LayerRecord]) -> Update:
        """Turn a measurement into factors; a layer without an alpha keeps its old factor."""
        units, by_name = self._scope.units, {record.name: record for record in records}
        # A unit may have joined after a background measurement began; that one lacks its layers.
        measured = [unit for unit in units if by_name.keys() >= set(unit.layers)]
        found = factors_of(measured, by_name, self.rule)
        goal = tuple(
            found.values.get(unit.name, before)
            for unit, before in zip(units, self._ramp.goal, strict=True)
        )
        self._ramp = FactorRamp(self._ramp.at(self.steps, self.rule.transition), goal, self.steps)
        self._lacking = dict(found.lacking) | {
            unit.name: "not measured yet" for unit in units if unit not in measured
        }
        self._notices.lacking(units, self._lacking, records, step)
        # New factors are examined again, for optimizers may change while training goes on.
        self._steps.look_again()
        factors = {unit.name: factor for unit, factor in zip(units, goal, strict=True)}
        update = self.history.add(
            step, self.steps, records, alphas=dict(found.alphas), factors=factors
        )
        if self._log and (self._group is None or dist.get_rank(self._group) == 0):
            # The step when the factors changed: loggers refuse steps that run backwards, as those
            # of background measurements would.
            self._log(update.scalars(), step=update.applied)
        if self.on_update:
            self.on_update(update)
        return update


def _check(model: Any, every: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TrainingError(f"expected a torch module to balance, not {type(model).__name__}")
    if every is not None and not is_whole(every):
        raise TrainingError(
            "every must be a whole number of optimizer steps of at least 1 (len(loader) for once "
            "per epoch), or None "
            f"to call update() yourself, not {every!r}"
        )
    for name, p in model.named_parameters():
        # Without a shape or values a weight could not take part, now or later.
        if isinstance(p, UninitializedParameter) or (p.is_meta and p.requires_grad):
            raise TrainingError(
                f"the parameter {name} has no values yet: build the Balancer after it has them "
                "(a lazy module: run one batch; the meta device: load or initialise the model)"
            )


def _pending(state: StoredState) -> tuple[int, Future[list[LayerRecord]]] | None:
    """Return the measurement that was in progress, as if its thread had just finished."""
    if state.pending is None:
        return None
    known: Future[list[LayerRecord]] = Future()
    try:
        known.set_result([LayerRecord.from_dict(record) for record in state.pending.records])
    except SchemaError as error:
        raise TrainingError(f"a record of the state cannot be read: {error}") from None
    return state.pending.step, known
