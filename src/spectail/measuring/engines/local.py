"""The default engine: this process with every core; small layers in parallel, large ones alone.

Small layers are measured side by side, one core each. Measuring one small layer at a time, with its
windows spread over the cores, took 1.4 times as long on SmolLM2 with 2 cores, because half of the
work on a layer (reading, moments, largest eigenvalue, error bar) uses only one core. A large layer
gets all cores, so that only one is in memory. On a GPU two layers are in progress, each on a stream
of its own: the next one is read and copied while the solver works on the first. Both streams first
wait for what the caller has asked of the GPU, such as the optimizer's last step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import replace
from functools import lru_cache, partial
from itertools import groupby
from typing import Any

import torch

from spectail.core.cuda import start_solver
from spectail.core.threads import on_one_core, single_threaded, spread_over
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
        plan, streams = _started_on(plan)
        with ThreadPoolExecutor(2, initializer=_enter, initargs=(streams,)) as pool:
            yield from _side_by_side(pool, 2, partial(_on_accelerator, plan=plan), layers)
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
                yield from _side_by_side(pool, cores, partial(measure_layer, plan=plan), run)


def _with_all_cores(layer: Layer, plan: Plan, cores: int) -> LayerRecord:
    """Measure one layer on all cores, with the numbers that one core gives."""
    with spread_over(cores):
        return measure_layer(layer, plan)


def _side_by_side(
    pool: ThreadPoolExecutor,
    workers: int,
    measured: Callable[[Layer], LayerRecord],
    layers: Iterable[Layer],
) -> Iterator[LayerRecord]:
    """Measure layers with ``workers`` threads and yield each record as soon as it is measured."""
    # One layer waits its turn, so that no worker is ever idle: not even beside an embedding, which
    # takes as long as thirty other layers.
    waiting: set[Future[LayerRecord]] = set()
    for layer in layers:
        waiting.add(pool.submit(measured, layer))
        if len(waiting) > workers:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    yield from (future.result() for future in as_completed(waiting))


def _started_on(plan: Plan) -> tuple[Plan, list[Any]]:
    """Return the plan with the number of its GPU, and two streams; none for other devices."""
    if torch.device(plan.device).type != "cuda":
        return plan, []
    # "cuda" means the caller's own GPU, and every new thread begins with the first one.
    device = torch.empty(0, device=plan.device).device
    start_solver(str(device))
    streams = _streams(str(device))
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream(device))
    return replace(plan, device=str(device)), list(streams)


@lru_cache
def _streams(device: str) -> tuple[Any, Any]:
    """Return the two streams of a GPU; cuBLAS keeps 32 MB for each stream that was ever used."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


def _enter(streams: list[Any]) -> None:
    """Give this thread one of the streams."""
    if streams:
        torch.cuda.set_stream(streams.pop())


def _on_accelerator(layer: Layer, plan: Plan) -> LayerRecord:
    """Measure one layer; all its work on the GPU is done when this returns."""
    try:
        # Further threads would compute on another stream, which waits for nothing on this one.
        with on_one_core():
            return measure_layer(layer, plan)
    finally:
        # After an error the GPU may still read weights that the caller is about to change.
        if torch.device(plan.device).type == "cuda":
            torch.cuda.current_stream(plan.device).synchronize()
