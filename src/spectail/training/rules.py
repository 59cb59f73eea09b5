"""Rules that a Balancer can follow: published methods as frozen types, maps from ``maps``.

A rule says which option of the optimizer is scaled, by which map of alpha, for which layers, and
how alpha is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from spectail import presets
from spectail.allocation.maps import Linear, Map, as_map
from spectail.allocation.targets import LearningRate, WeightDecay
from spectail.core.spec import Spec
from spectail.errors import AllocationError, TrainingError


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What all rules share; the four below are what is published.

    Embeddings, the head, norms, routers and LoRA deltas stay at factor 1, and so do the first and
    the last layer of the model unless ``ends``. ``include`` globs add layers that would stay out,
    ``exclude`` globs leave layers out.
    """

    name: ClassVar[str]
    option: ClassVar[str]
    """Of the optimizer's groups: what is scaled."""
    target: ClassVar[type[LearningRate] | type[WeightDecay]]

    map: Map | str
    """A type of ``spectail.maps``, or its text."""
    level: str = "layer"
    """``layer``, or ``block``: one factor per block, by its mean alpha."""
    normalize: bool = False
    """Whether the factors' mean, weighted by number of weights, is 1; published maps do not keep
    it.
    """
    transition: int = 0
    """Steps over which the factors move from the old to the new ones, evenly; 0: at once."""
    ends: bool = False
    """Whether the first and the last layer take part too."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_eigenvalues: int = presets.MIN_EIGENVALUES
    """Layers with fewer keep factor 1."""
    spec: Spec = presets.FARMS
    """How alpha is measured."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "map", as_map(self.map))
        for word in ("include", "exclude"):
            globs = getattr(self, word)
            if isinstance(globs, str):
                raise TrainingError(
                    f"{word} must be a list of globs, not the text {globs!r}: write [{globs!r}]"
                )
            object.__setattr__(self, word, tuple(globs))
        for word in ("transition", "min_eigenvalues"):
            number = getattr(self, word)
            if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                raise TrainingError(f"{word} must be a whole number of at least 0, not {number!r}")
        if not isinstance(self.spec, Spec):
            raise TrainingError(f"spec must be a st.Spec or one of st.presets, not {self.spec!r}")
        self.scaling()

    def scaling(self) -> LearningRate | WeightDecay:
        """The allocation target that gives this rule's factors, at a base value of 1."""
        return self.target(map=self.map, level=self.level, normalize=self.normalize)

    def settings(self) -> dict[str, Any]:
        """The rule as plain JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {word: list(values[word]) for word in ("include", "exclude")}
        return {
            "rule": self.name,
            **values,
            **lists,
            "map": str(self.map),
            "spec": self.spec.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class TempBalance(Rule):
    """Learning rates from 0.5 to 1.5 times the base, linear in alpha (arXiv 2312.00359).

    Its other maps: ``sqrt``, ``log2``, ``step:0.5:1.5``. Published once per epoch.
    """

    name = "tempbalance"
    option = "lr"
    target = LearningRate
    map: Map | str = presets.MAPS["tempbalance"]


@dataclass(frozen=True, kw_only=True)
class TBSigmoid(Rule):
    """Learning rates 10 ** phi times the base, phi a sigmoid of centred alpha (arXiv 2410.12178).

    ``map="sigmoid:0.25"`` sets the scale, published from 0.125 to 2 by how much data there is;
    ``level="block"`` is its setting for transformers. There every 100 steps, for PDEs every epoch.
    """

    name = "tb-sigmoid"
    option = "lr"
    target = LearningRate
    map: Map | str = presets.MAPS["tb-sigmoid"]


@dataclass(frozen=True, kw_only=True)
class LLR(Rule):
    """Learning rates from 1 to 5 times the base, with a smooth transition (arXiv 2605.22297).

    Published every 100 steps. Embeddings and head stay at the base rate here; the published code
    gives them the largest factor.
    """

    name = "llr"
    option = "lr"
    target = LearningRate
    map: Map | str = presets.MAPS["llr"]
    transition: int = presets.LLR_TRANSITION

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.map, Linear) and self.map.low >= 1) or self.normalize:
            raise TrainingError(
                "llr only scales up: its map must be linear:LOW:HIGH with LOW of at least 1, not "
                "normalised, "
                f"not {self.map}{' normalised' if self.normalize else ''}; use tempbalance for "
                "other maps"
            )


@dataclass(frozen=True, kw_only=True)
class AlphaDecay(Rule):
    """Weight decays from 0.666 to 3 times the base, linear in alpha; every 500 steps."""

    name = "alphadecay"
    option = "weight_decay"
    target = WeightDecay
    map: Map | str = presets.MAPS["alphadecay"]


RULES: dict[str, type[Rule]] = {
    rule.name: rule for rule in (TempBalance, TBSigmoid, LLR, AlphaDecay)
}


def as_rule(given: Rule | str | Mapping[str, Any]) -> Rule:
    """A rule given as itself, as its settings, or as text: its name, or its name and a map.

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
    if name not in RULES:
        raise TrainingError(
            f"the rule must be one of {', '.join(RULES)} (or with a map, tempbalance:sqrt), or a "
            "type of "
            f"spectail.training.rules, not {given!r}"
        )
    try:
        return RULES[name](**options)
    except AllocationError as error:
        raise TrainingError(f"the rule {given!r} cannot be used: {error}") from error
