"""LLR (arXiv 2605.22297): learning rates of at least the base, with a smooth transition."""

from __future__ import annotations

from dataclasses import dataclass

from spectail import presets
from spectail.allocation.maps import Linear, Map
from spectail.allocation.targets import LearningRate
from spectail.errors import TrainingError
from spectail.training.rules.base import Rule


@dataclass(frozen=True, kw_only=True)
class LLR(Rule):
    """Scale learning rates from 1 to 5 times the base, with a smooth transition (arXiv 2605.22297).

    The paper measures every 100 steps. Here embeddings and head stay at the base rate; the
    published code gives them the largest factor.
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
                f"normalised, not {self.map}{' normalised' if self.normalize else ''}; use "
                "tempbalance for other maps"
            )
