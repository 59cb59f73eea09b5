"""The Ray engine: layers are spread over a cluster.

Every worker opens the source itself, so all machines must see its files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from spectail.errors import SpecError
from spectail.measuring.layer import Plan, measure_layer
from spectail.models.open import open_source
from spectail.models.source import Layer
from spectail.results.records import LayerRecord, RunInfo


def measure(plan: Plan, layers: Iterable[Layer]) -> Iterator[LayerRecord]:
    """Measure the layers on every CPU that Ray offers and yield records as they are done.

    Each worker uses one thread.
    """
    try:
        import ray
    except ImportError as error:
        raise SpecError(
            "the ray engine needs Ray: pip install 'spectail[ray]', or leave out --engine"
        ) from error
    if not isinstance(plan.source, str):
        raise SpecError(
            "the ray engine needs a source that workers can open: "
            "text that names a file, not an object"
        )
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        worker = ray.remote(_Worker)
        count = max(1, int(ray.cluster_resources().get("CPU", 1)))
        idle = [worker.remote(plan.source, plan.run, plan.device) for _ in range(count)]
        # Hand out the next layer only when a worker is idle, so that progress is announced in time.
        busy: dict[Any, Any] = {}
        for layer in layers:
            if not idle:
                done, _ = ray.wait(list(busy))
                idle.append(busy.pop(done[0]))
                yield ray.get(done[0])
            actor = idle.pop()
            busy[actor.measure.remote(layer.name)] = actor
        while busy:
            done, _ = ray.wait(list(busy))
            busy.pop(done[0])
            yield ray.get(done[0])
    finally:
        if started_here:
            ray.shutdown()


class _Worker:
    """A Ray actor that opens the source once and measures layers by name."""

    def __init__(self, source: str, run: RunInfo, device: str) -> None:
        # The cluster has one worker for each CPU, so each worker uses one thread.
        torch.set_num_threads(1)
        opened = open_source(source)
        self.plan = Plan(run, opened.layers, device)
        self.layers = {layer.name: layer for layer in (*opened.layers, *opened.tied)}

    def measure(self, name: str) -> LayerRecord:
        """Measure the layer of this name."""
        return measure_layer(self.layers[name], self.plan)
