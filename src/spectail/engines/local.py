"""The default engine: this process, every core busy. Small layers side by side, large ones alone with all cores.

One small layer at a time with its windows spread over the cores took 1.4 times as long on SmolLM2 with 2 cores: half
of the work on it (reading, moments, largest eigenvalue, error bar) keeps one core only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from spectail.measurement import Plan, measure_layer
from spectail.models.source import Layer
from spectail.records import LayerRecord

SMALL = 4 * 2**20
"""Weights up to which a layer shares the memory with others; beyond, one tensor is held at a time."""


def measure(plan: Plan, layers: Iterable[Layer]) -> Iterator[LayerRecord]:
    """Measure the layers; records come in their order."""
    cores = torch.get_num_threads()
    if cores == 1 or plan.device != "cpu":
        yield from (measure_layer(layer, plan) for layer in layers)
        return
    waiting: deque[Future[LayerRecord]] = deque()
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(cores) as pool:
            for layer in layers:
                if layer.numel > SMALL:
                    yield from _finish(waiting, leave=0)
                    torch.set_num_threads(cores)
                    yield measure_layer(layer, plan)
                    torch.set_num_threads(1)
                else:
                    waiting.append(pool.submit(measure_layer, layer, plan))
                    yield from _finish(waiting, leave=cores)
            yield from _finish(waiting, leave=0)
    finally:
        torch.set_num_threads(cores)


def _finish(waiting: deque[Future[LayerRecord]], leave: int) -> Iterator[LayerRecord]:
    """The oldest records, until only ``leave`` are still being measured."""
    while len(waiting) > leave:
        yield waiting.popleft().result()
