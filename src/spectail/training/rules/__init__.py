"""Rules that a Balancer can follow. One file each, one line each in the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spectail.core.spec import Spec
from spectail.errors import AllocationError, TrainingError
from spectail.training.rules.alphadecay import AlphaDecay
from spectail.training.rules.base import Rule
from spectail.training.rules.llr import LLR
from spectail.training.rules.tb_sigmoid import TBSigmoid
from spectail.training.rules.tempbalance import TempBalance

__all__ = ["LLR", "RULES", "AlphaDecay", "Rule", "TBSigmoid", "TempBalance", "as_rule"]

RULES: list[type[Rule]] = [
    TempBalance,
    TBSigmoid,
    LLR,
    AlphaDecay,
]
"""All rules; ``as_rule`` finds them here by name."""


def as_rule(given: Rule | str | Mapping[str, Any]) -> Rule:
    """Return a rule given as itself, as its settings, or as text: a name, or a name and a map.

    >>> as_rule("tempbalance:sqrt").map, as_rule("llr").transition
    (SquareRoot(), 50)
    >>> as_rule(AlphaDecay().settings()) == AlphaDecay()
    True
    """
    if isinstance(given, Rule):
        return given
    options: dict[str, Any] = {}
    if isinstance(given, Mapping):
        options = {**given, "spec": Spec(**given["spec"])}
        name = options.pop("rule")
    else:
        name, _, how = given.strip().partition(":") if isinstance(given, str) else ("", "", "")
        options = {"map": how} if how else {}
    # Read at every call, so that a rule added to the table at run time is found.
    by_name = {rule.name: rule for rule in RULES}
    if name not in by_name:
        raise TrainingError(
            f"the rule must be one of {', '.join(by_name)} (or with a map, tempbalance:sqrt), or a "
            f"type of spectail.training.rules, not {given!r}"
        )
    try:
        return by_name[name](**options)
    except AllocationError as error:
        raise TrainingError(f"the rule {given!r} cannot be used: {error}") from error
