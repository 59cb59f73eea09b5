"""The warnings of a Balancer during training; most are given once."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence

from spectail.results.records import LayerRecord
from spectail.training.parameter_units import Unit
from spectail.training.scope import Scope, listed
from spectail.training.steps import Steps

_LOG = logging.getLogger(__name__)


class Notices:
    """Gives the warnings of one Balancer.

    ``option`` is the option that it scales, ``optimizer`` the name of the optimizer's class, and
    ``held`` the ``id`` of the optimizer's parameters.
    """

    def __init__(self, option: str, optimizer: str, held: set[int]) -> None:
        self.option, self.optimizer = option, optimizer
        self.told: set[str] = set()
        """Keys of the warnings given so far; stored with the state, so a resumed run is quiet."""
        self._held = held

    def scope(self, scope: Scope) -> None:
        """Warn if no layer takes part, and of each layer that is not in the optimizer."""
        if not scope.units:
            frozen = [f"{name} ({scope.left_out[name]})" for name in scope.waiting]
            self._once(
                "none",
                f"no layer takes part now, so that no factor changes anything: {listed(frozen)}; "
                "those that are unfrozen take part from the next measurement on",
            )
        names = [name for name in scope.forgotten if f"forgotten {name}" not in self.told]
        self.told.update(f"forgotten {name}" for name in names)
        if names:
            _warn(
                f"{len(names)} layers of the model are not in the optimizer and are not measured: "
                f"{listed(names)}"
            )

    def without_effect(self) -> None:
        """Warn that the trial at the start has shown no effect of the factors."""
        _warn(
            f"trial steps of {self.optimizer} on small copies were the same with half the "
            f"{self.option}: it does not go by the {self.option} of its groups, so that the "
            "factors have no effect"
        )

    def captured(self) -> None:
        """Warn that a step is being recorded into a CUDA graph."""
        _warn(
            "a captured step runs no hooks when it is replayed: the factors stay those of the "
            "capture and nothing is measured; call update() yourself and capture again after it"
        )

    def groups(self, steps: Steps, scope: Scope) -> None:
        """Warn after a step of values other than given, new parameters and missing layers."""
        if steps.differing:
            self._once(
                "differing",
                f"the optimizer steps with another {self.option} than it was given for "
                f"{listed(sorted(steps.differing))}: the factors have no effect there",
            )
        if not steps.groups.rebuilt:
            return
        steps.groups.rebuilt = False
        # Only after a group was split again: counting parameters in every step would be slow.
        held = steps.optimizers.held()
        added, self._held = held - self._held, self._held | held
        if added:
            _warn(
                f"{len(added)} parameters came into the optimizer after the Balancer was built: "
                "layers of the model take part from the next measurement on, others train at their "
                f"group's own {self.option}"
            )
        # A unit that keeps any of its weights still trains by its factor.
        lost = [unit.name for unit in scope.units if not any(id(p) in held for p in unit.weights)]
        if lost:
            self._once(
                f"lost {lost}",
                f"{len(lost)} layers are no longer in the optimizer, so that their factors have no "
                f"effect: {listed(lost)}; build a new Balancer after what has replaced their "
                "parameters",
            )

    def unused(self, passes: int) -> None:
        """Warn that the weights change although the optimizer does not step."""
        self._once(
            "unused",
            f"the weights changed within {passes} backward passes, but not in step() of the "
            f"{self.optimizer} that the Balancer is on: the factors have no effect and nothing is "
            "measured; build it on the optimizer that steps, after all that makes or replaces one, "
            "or call its remove()",
        )

    def unstored(self, kinds: Mapping[str, str]) -> None:
        """Warn of values per group that the stored state cannot hold."""
        for key, kind in kinds.items():
            self._once(
                f"unstored {key}",
                f"the state is stored without {key!r} of the layers' groups, a {kind}: a resumed "
                "run goes on with that of the optimizer's own group",
            )

    def never_measured(self, steps: int, every: int | None) -> None:
        """Warn at the end that nothing was measured, so all factors were 1."""
        why = f"it measures every {every} steps" if every else "update() was never called"
        self._once(
            "never", f"nothing was measured in {steps} steps, so that every factor was 1: {why}"
        )

    def scope_stays(self, step: int, error: Exception) -> None:
        """Warn that the set of trained layers has changed in a way that cannot be followed."""
        self._once(
            f"scope {error}", f"the layers that take part stay as they were at step {step}: {error}"
        )

    def changes(self, before: Scope, now: Scope, step: int) -> None:
        """Warn of layers that have joined or left; again for the same layer, only log it."""
        self.scope(now)
        old, new = ({unit.name for unit in scope.units} for scope in (before, now))
        came = {name: name for name in (unit.name for unit in now.units) if name not in old}
        went = {name: f"{name} ({now.left_out.get(name, 'gone')})" for name in old - new}
        # Gradual unfreezing moves the same layers often; one warning for each is enough.
        for sign, names, text in (
            ("+", came, "take part from now on"),
            ("-", went, "take part no longer"),
        ):
            untold = {sign + name for name in names} - self.told
            self.told |= untold
            told = f"{len(names)} layers {text}, at step {step}: {listed(names.values())}"
            if untold:
                _warn(told)
            elif names:
                _LOG.info("%s", told)

    def lacking(
        self,
        units: Sequence[Unit],
        lacking: Mapping[str, str],
        records: Sequence[LayerRecord],
        step: int,
    ) -> None:
        """Warn of layers that have lost their alpha, or once if no layer has one."""
        if units and len(lacking) == len(units) and "all" not in self.told:
            self.told.add("all")
            name, reason = next(iter(lacking.items()))
            _warn(
                f"not one layer has an alpha at step {step}, so that all factors stay; {name}: "
                f"{reason}"
            )
            return
        # A layer that is too small never had an alpha, and was reported at the start.
        failed = {record.name for record in records if record.status == "failed"}
        for unit in units:
            if unit.name in lacking and failed.intersection(unit.layers):
                self._once(
                    unit.name,
                    f"{unit.name} has no alpha at step {step} and keeps its factor: "
                    f"{lacking[unit.name]}",
                )

    def _once(self, key: str, text: str) -> None:
        if key not in self.told:
            self.told.add(key)
            _warn(text)


def _warn(text: str) -> None:
    warnings.warn(f"Balancer: {text}", stacklevel=4)
