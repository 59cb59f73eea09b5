"""One core per worker: LAPACK gains little from two threads on one window, so windows or layers share the cores out.

Two workers with a thread each solve 192 x 192 windows nearly twice as fast as one worker does with
either setting.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np  # noqa: F401  (loads the BLAS that the controller has to find)
import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def single_threaded() -> Iterator[None]:
    """Keep torch and NumPy's BLAS on one thread each in the whole process; both settings are put back at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _libraries().limit(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(threads)


def cores() -> int:
    """How many cores the work of this thread may spread over: torch's number of threads, or one (``on_one_core``)."""
    return 1 if getattr(_THIS_THREAD, "alone", False) else torch.get_num_threads()


@contextmanager
def on_one_core() -> Iterator[None]:
    """Let this thread spread no work over others; no setting that other threads see is changed meanwhile."""
    _THIS_THREAD.alone = True
    try:
        yield
    finally:
        _THIS_THREAD.alone = False


_THIS_THREAD = threading.local()


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()
