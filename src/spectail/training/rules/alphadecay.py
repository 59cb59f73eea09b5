"""AlphaDecay: weight decays that are linear in alpha."""

from __future__ import annotations

from dataclasses import dataclass

from spectail import presets
from spectail.allocation.maps import Map
from spectail.allocation.targets import WeightDecay
from spectail.training.rules.base import Rule


@dataclass(frozen=True, kw_only=True)
class AlphaDecay(Rule):
    """Scale weight decays from 0.666 to 3 times the base, linearly in alpha; every 500 steps."""

    name = "alphadecay"
    option = "weight_decay"
    target = WeightDecay
    map: Map | str = presets.MAPS["alphadecay"]
