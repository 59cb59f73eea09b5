"""The default engine: this process with every core; small layers in parallel, large ones alone.

Small layers are measured side by side, one core each. Measuring one small layer at a time, with its
windows spread over the cores, took 1.4 times as long on SmolLM2 with 2 cores, because half of the
work on a layer (reading, moments, largest eigenvalue, error bar) uses only one core. A large layer
gets all cores, so that only one is in memory. On a GPU two layers are in progress, each on a stream
of its own: the next one is read and copied while the solver works on the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from itertools import groupby

import torch

from spectail.core.threads import single_threaded, spread_over
from spectail.measuring.layer import Plan, measure_layer
from spectail.models.source import Layer
from spectail.results.records import LayerRecord

TOGETHER = 2**27
"""Most weights that layers measured side by side may hold together. Larger layers are measured
alone."""


def measure(plan: Plan, layers: Iterable[Layer]) -> Iterator[LayerRecord]:
    """Measure the layers and yield their records as they are measured."""
    cores = torch.get_num_threads()
    if plan.device != "cpu":
        with ThreadPoolExecutor(2, initializer=_own_stream, initargs=(plan.device,)) as pool:
            yield from _side_by_side(pool, 2, plan, layers)
        return
    # Each of the layers in progress may hold an equal share of TOGETHER. Consecutive layers of
    # one size class are measured together.
    for large, run in groupby(layers, key=lambda layer: layer.numel * cores > TOGETHER):
        if large or cores == 1:
            yield from (_with_all_cores(layer, plan, cores) for layer in run)
        else:
            # torch and MKL count threads per thread: a new one begins with all cores.
            with (
                single_threaded(),
                ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            ):
                yield from _side_by_side(pool, cores, plan, run)


def _with_all_cores(layer: Layer, plan: Plan, cores: int) -> LayerRecord:
    """Measure one layer on all cores, with the numbers that one core gives."""
    with spread_over(cores):
        return measure_layer(layer, plan)


def _side_by_side(
    pool: ThreadPoolExecutor, workers: int, plan: Plan, layers: Iterable[Layer]
) -> Iterator[LayerRecord]:
    """Measure layers with ``workers`` threads and yield each record as soon as it is measured."""
    # One layer waits its turn, so that no worker is ever idle: not even beside an embedding, which
    # takes as long as thirty other layers.
    waiting: set[Future[LayerRecord]] = set()
    for layer in layers:
        waiting.add(pool.submit(measure_layer, layer, plan))
        if len(waiting) > workers:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    yield from (future.result() for future in as_completed(waiting))


def _own_stream(device: str) -> None:
    """Give this thread a CUDA stream of its own."""
    if torch.device(device).type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))
