"""Static learning rates and weight decays: factors by parameter, and snippets that apply them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from spectail.allocation.allocation import Allocation
from spectail.errors import ExportError
from spectail.export.parameters import Parameters, by_parameter, check_patterns, known_parameters
from spectail.export.snippets import GROUPS, LIGHTNING, TORCH, TRANSFORMERS
from spectail.export.tool import Tool

_UNCHECKED = "names are not checked against the model's parameters: give --model for that"
_QUANTITIES = {"lr": "LEARNING_RATE", "weight-decay": "WEIGHT_DECAY"}
"""The targets that are rates, with the name of their factors in a snippet."""


@dataclass(frozen=True)
class _Rates(Tool):
    """What all exports of rates have in common."""

    takes: ClassVar[str] = "lr, weight-decay"

    parameters: Parameters | None = None
    """Names of the model's parameters."""

    def remark(self, allocation: Allocation) -> str:
        """Remark on names that nobody has checked."""
        return "" if self.parameters is not None else _UNCHECKED


@dataclass(frozen=True)
class Factors(_Rates):
    """JSON from a pattern to the factor of the parameters that it matches."""

    name: ClassVar[str] = "factors"
    tried: ClassVar[str] = "every pattern against all parameters of a Llama"

    def text(self, allocation: Allocation) -> str:
        """Return the factors as JSON: see ``factors``."""
        return json.dumps(factors(allocation, self.parameters), indent=1) + "\n"


@dataclass(frozen=True)
class _Snippet(_Rates):
    """Python that makes parameter groups; it needs nothing of spectail."""

    imports: ClassVar[str] = "import torch"
    """What the snippet needs besides Python."""
    code: ClassVar[str]
    """What follows the function that makes the groups."""

    beside: Allocation | str | None = None
    """An allocation of the other quantity, or its file: the groups then have both."""

    def text(self, allocation: Allocation) -> str:
        """Return the file: the factors, a function that makes groups of them, and its use."""
        found = dict.fromkeys(_QUANTITIES, "")
        given = [allocation, *([self._other(allocation)] if self.beside is not None else [])]
        for one in given:
            found[one.target] = _as_python(factors(one, self.parameters))
        groups = GROUPS.format(
            imports=self.imports,
            learning_rates=found["lr"],
            weight_decays=found["weight-decay"],
            base=" and ".join(f"{one.target} {one.budget:g}" for one in given),
        )
        return groups + self.code

    def _other(self, allocation: Allocation) -> Allocation:
        """Return the allocation beside; refuse one of the same quantity or another model."""
        other = self.beside if isinstance(self.beside, Allocation) else None
        if other is None:
            other = Allocation.load(Path(str(self.beside)))
        if other.target not in _QUANTITIES or other.target == allocation.target:
            wanted = next((x for x in _QUANTITIES if x != allocation.target), "")
            raise ExportError(
                f"beside must be an allocation of {wanted}, but it is of {other.target}"
            )
        if other.fingerprint != allocation.fingerprint:
            raise ExportError(
                f"the two allocations are of different models: {allocation.source} and "
                f"{other.source}"
            )
        return other


@dataclass(frozen=True)
class PlainTorch(_Snippet):
    """Parameter groups for any optimizer of PyTorch."""

    name: ClassVar[str] = "torch"
    tried: ClassVar[str] = "2.13: a step of SGD moves every parameter by its own rate"
    code: ClassVar[str] = TORCH


@dataclass(frozen=True)
class Transformers(_Snippet):
    """A ``Trainer`` whose ``create_optimizer`` makes the groups."""

    name: ClassVar[str] = "transformers"
    tried: ClassVar[str] = "5.23: a Trainer trains with the groups, and without decay of biases"
    imports: ClassVar[str] = "from transformers import Trainer"
    code: ClassVar[str] = TRANSFORMERS


@dataclass(frozen=True)
class Lightning(_Snippet):
    """A mixin with the ``configure_optimizers`` of a LightningModule."""

    name: ClassVar[str] = "lightning"
    tried: ClassVar[str] = "2.6.6: a Trainer trains a module with the groups"
    code: ClassVar[str] = LIGHTNING


def factors(allocation: Allocation, parameters: Parameters | None = None) -> dict[str, float]:
    r"""Map a pattern for every weight, with its bias, to its rate over the base rate.

    The patterns are regular expressions for full names of parameters, anchored at both ends:
    ``^model\.layers\.3\.mlp\.up_proj(\.weight|\.bias)?$``. Everything that no pattern matches has
    the base rate.

    Args:
        allocation: An allocation of ``lr`` or ``weight-decay``.
        parameters: Names of the model's parameters, ``model.named_parameters()``; a mapping also
            gives their names in the file that was analysed.

    Raises:
        ExportError: another target, a base rate of 0, or a layer that no parameter holds.

    """
    if allocation.target not in _QUANTITIES:
        raise ExportError(
            f"rates take an allocation of {' or '.join(_QUANTITIES)}, but this one is of "
            f"{allocation.target}"
        )
    if not allocation.budget > 0:
        raise ExportError(
            "rates over a base of 0 are not defined: allocate with a base value above 0"
        )
    found = {
        rf"^{re.escape(name)}(\.weight|\.bias)?$": value / allocation.budget
        for name, value in by_parameter(allocation, parameters).items()
    }
    names = known_parameters(allocation, parameters)
    check_patterns(found, names, (), lambda pattern, name: bool(re.search(pattern, name)))
    return found


def _as_python(found: dict[str, float]) -> str:
    """Write the items of a dictionary, one in a line."""
    return "".join(f"\n    {pattern!r}: {factor!r}," for pattern, factor in found.items())
