"""Learning rates: higher where alpha is high, so that less trained layers learn faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spectail import presets
from spectail.allocation.maps import Map
from spectail.allocation.targets.times_base import Scaled


@dataclass(frozen=True, kw_only=True)
class LearningRate(Scaled):
    """A learning rate per unit around the base rate.

    TempBalance (arXiv 2312.00359): ``tempbalance``, or ``sqrt``, ``log2``, ``step:LOW:HIGH``, per
    layer. TB_Sigmoid (arXiv 2410.12178): ``sigmoid:SCALE``, per block for transformers. LLR (arXiv
    2605.22297): ``llr``, per layer. Layers that are left out train at the base rate.
    """

    name: ClassVar[str] = "lr"
    quantity: ClassVar[str] = "learning rate"
    meaning: ClassVar[str] = "learning rate, higher where alpha is high (TempBalance)"
    budget_meaning: ClassVar[str] = "the base rate"

    map: Map | str = presets.MAPS["tempbalance"]
