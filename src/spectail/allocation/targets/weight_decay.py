"""Weight decay: larger where alpha is high, so that light tails are regularised more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spectail import presets
from spectail.allocation.maps import Map
from spectail.allocation.targets.times_base import Scaled


@dataclass(frozen=True, kw_only=True)
class WeightDecay(Scaled):
    """A weight decay per unit around the base value; AlphaDecay's linear map by default.

    Layers that are left out keep the base value.
    """

    name: ClassVar[str] = "weight-decay"
    quantity: ClassVar[str] = "weight decay"
    meaning: ClassVar[str] = "weight decay, larger where alpha is high (AlphaDecay)"
    budget_meaning: ClassVar[str] = "the base value"

    map: Map | str = presets.MAPS["alphadecay"]
