"""What a rule is: how a Balancer turns alphas into factors of an optimizer's option.

A new rule is one file with one class, and one line in the table of ``spectail.training.rules``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from spectail import presets
from spectail.allocation.maps import Map, as_map
from spectail.allocation.targets import LearningRate, WeightDecay
from spectail.basics.checks import check_whole
from spectail.core.spec import Spec
from spectail.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The settings of a rule: which option is scaled, by which map of alpha, for which layers.

    Embeddings, the head, norms, routers and LoRA deltas stay at factor 1, and so do the first and
    the last layer of the model unless ``include_first_last`` is set. Globs in ``include`` add
    layers that would stay out, globs in ``exclude`` leave layers out.
    """

    name: ClassVar[str]
    """The name of the rule in texts and settings."""
    option: ClassVar[str]
    """The option in the optimizer's groups that is scaled, such as ``lr``."""
    target: ClassVar[type[LearningRate] | type[WeightDecay]]
    """The allocation target that computes the factors."""

    map: Map | str
    """A type of ``spectail.maps``, or its text."""
    level: str = "layer"
    """``layer``, or ``block`` for one factor per block, by its mean alpha."""
    normalize: bool = False
    """Whether the factors are scaled so that their mean, weighted by number of weights, is 1.
    Published maps do not keep the mean.
    """
    transition: int = 0
    """The number of steps over which factors change evenly from the old to the new ones; 0: at
    once.
    """
    include_first_last: bool = False
    """Whether the first and the last layer of the model take part too."""
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    min_eigenvalues: int = presets.MIN_EIGENVALUES
    """Layers with fewer eigenvalues keep factor 1."""
    spec: Spec = presets.FARMS
    """The settings that alpha is measured with."""

    def __post_init__(self) -> None:
        # The class is frozen, so values that are given as text are replaced through ``object``.
        object.__setattr__(self, "map", as_map(self.map))
        for word in ("include", "exclude"):
            globs = getattr(self, word)
            if isinstance(globs, str):
                raise TrainingError(
                    f"{word} must be a list of globs, not the text {globs!r}: write [{globs!r}]"
                )
            object.__setattr__(self, word, tuple(globs))
        check_whole(
            TrainingError, 0, transition=self.transition, min_eigenvalues=self.min_eigenvalues
        )
        if not isinstance(self.spec, Spec):
            raise TrainingError(f"spec must be a st.Spec or one of st.presets, not {self.spec!r}")
        self.scaling()  # refuses a level or a map that the target does not take

    def scaling(self) -> LearningRate | WeightDecay:
        """Return the allocation target that gives this rule's factors at a base value of 1."""
        return self.target(map=self.map, level=self.level, normalize=self.normalize)

    def settings(self) -> dict[str, Any]:
        """Return the rule as plain JSON values, which ``as_rule`` reads."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {word: list(values[word]) for word in ("include", "exclude")}
        return {
            "rule": self.name,
            **values,
            **lists,
            "map": str(self.map),
            "spec": self.spec.to_dict(),
        }
