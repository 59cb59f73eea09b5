"""Weight decay: larger where alpha is, so that light tails are regularised more (AlphaDecay)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spectail import presets
from spectail.allocation.factors import Scaled
from spectail.allocation.maps import Map


@dataclass(frozen=True, kw_only=True)
class WeightDecay(Scaled):
    """A weight decay per unit: AlphaDecay's linear map by default. Layers that are left out keep the base value."""

    name: ClassVar[str] = "weight-decay"
    quantity: ClassVar[str] = "weight decay"

    map: Map | str = presets.MAPS["alphadecay"]
