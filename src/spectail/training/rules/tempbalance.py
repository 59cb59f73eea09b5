"""TempBalance (arXiv 2312.00359): learning rates that are linear in alpha."""

from __future__ import annotations

from dataclasses import dataclass

from spectail import presets
from spectail.allocation.maps import Map
from spectail.allocation.targets import LearningRate
from spectail.training.rules.base import Rule


@dataclass(frozen=True, kw_only=True)
class TempBalance(Rule):
    """Scale learning rates from 0.5 to 1.5 times the base, linearly in alpha (arXiv 2312.00359).

    The paper also has the maps ``sqrt``, ``log2`` and ``step:0.5:1.5``. It measures once per epoch.
    """

    name = "tempbalance"
    option = "lr"
    target = LearningRate
    map: Map | str = presets.MAPS["tempbalance"]
