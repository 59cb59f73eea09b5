"""The default engine: one layer after the other in this process, the windows of each spread over the cores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from spectail.measurement import Plan, measure_layer
from spectail.models.source import Layer
from spectail.records import LayerRecord


def measure(plan: Plan, layers: Iterable[Layer]) -> Iterator[LayerRecord]:
    """Measure the layers in their order."""
    for layer in layers:
        yield measure_layer(layer, plan)
