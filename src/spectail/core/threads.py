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
    """Return how many cores the work of this thread may use: torch's threads, or one.

    It is one inside ``on_one_core``.
    """
    return 1 if getattr(_THIS_THREAD, "alone", False) else torch.get_num_threads()


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep the work of this thread on one core, without changing any setting of other threads."""
    _THIS_THREAD.alone = True
    try:
        yield
    finally:
        _THIS_THREAD.alone = False


_THIS_THREAD = threading.local()


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    """Return the controller of the loaded BLAS; cached, because finding the libraries is slow."""
    return ThreadpoolController()
