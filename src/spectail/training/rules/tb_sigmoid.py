"""TB_Sigmoid (arXiv 2410.12178): learning rates by a sigmoid of alpha, for fine-tuning and PDEs."""

from __future__ import annotations

from dataclasses import dataclass

from spectail import presets
from spectail.allocation.maps import Map
from spectail.allocation.targets import LearningRate
from spectail.training.rules.base import Rule


@dataclass(frozen=True, kw_only=True)
class TBSigmoid(Rule):
    """Scale learning rates by 10 ** phi, phi a sigmoid of centred alpha (arXiv 2410.12178).

    ``map="sigmoid:0.25"`` sets the scale; published values go from 0.125 to 2 and depend on the
    amount of data. For transformers the paper uses ``level="block"`` and measures every 100 steps;
    for PDEs it measures every epoch.
    """

    name = "tb-sigmoid"
    option = "lr"
    target = LearningRate
    map: Map | str = presets.MAPS["tb-sigmoid"]
