"""Control threads: one core for each worker, since windows or layers are spread over the cores.

LAPACK gains little from two threads on one window. Two workers with one thread each solve 192 x 192
windows nearly twice as fast as one worker does, whether that has one thread or two.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np  # noqa: F401  (loads the BLAS that the controller must find)
import torch
from threadpoolctl import ThreadpoolController


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


@contextmanager
def spread_over(workers: int) -> Iterator[None]:
    """Spread the windows of this thread's work over ``workers`` threads, and nothing else.

    Every sum then runs on one thread, whose order does not depend on the number of workers. So the
    numbers are the same, bit for bit, with any number of them.
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
def _libraries() -> ThreadpoolController:
    """Return the controller of the loaded BLAS; cached, because finding the libraries is slow."""
    return ThreadpoolController()
