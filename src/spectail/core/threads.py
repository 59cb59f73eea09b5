"""Control threads: one core for each worker, since windows or layers are spread over the cores.

LAPACK gains little from two threads on one window. Two workers with one thread each solve 192 x 192
windows nearly twice as fast as one worker does, whether that has one thread or two.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import numpy as np  # noqa: F401  (loads the BLAS that the controller must find)
import torch
from threadpoolctl import ThreadpoolController

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def single_threaded() -> Iterator[None]:
    """Limit torch and NumPy's BLAS to one thread in the whole process; restore both afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


def cores() -> int:
    """Return how many cores the work of this thread may use.

    It is the number that ``spread_over`` or ``on_one_core`` gives, else torch's number of threads.
    """
    workers: int | None = getattr(_THIS_THREAD, "workers", None)
    return torch.get_num_threads() if workers is None else workers


def spread(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """Return the results for all items in their order, computed on as many threads as ``cores``.

    Each of several items is computed on one thread, so that it does not depend on the number of
    threads; a single item may use all of them (``spread_over`` prevents that). The first error of a
    thread is raised.
    """
    workers = cores()
    # With a single item or core the thread pool would only add overhead.
    if workers == 1 or len(items) == 1:
        return [function(item) for item in items]
    with single_threaded():
        return list(_pool(workers, os.getpid()).map(function, items))


@contextmanager
def spread_over(workers: int) -> Iterator[None]:
    """Let only ``spread`` use several threads, ``workers`` of them, for the work of this thread.

    Every sum then runs on one thread, in an order that does not depend on the number of workers. So
    the numbers are the same, bit for bit, with any number of them.
    """
    with single_threaded(), _workers(workers):
        yield


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep the work of this thread on one core, without changing any setting of other threads."""
    with _workers(1):
        yield


@contextmanager
def _workers(number: int) -> Iterator[None]:
    """Set what ``cores`` returns in this thread."""
    _THIS_THREAD.workers = number
    try:
        yield
    finally:
        _THIS_THREAD.workers = None


_THIS_THREAD = threading.local()


@lru_cache(maxsize=1)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Return the worker threads of this process, which keep their buffers between calls.

    A forked process has none of its parent's threads, so the process id is part of the key.
    """
    # torch and MKL count threads per thread: without this a new one begins with all cores.
    return ThreadPoolExecutor(
        workers, f"spectail-{process}", initializer=torch.set_num_threads, initargs=(1,)
    )


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    """Return the controller of the loaded BLAS; cached, because finding the libraries is slow."""
    return ThreadpoolController()
