"""One core per worker: LAPACK gains little from two threads on one window, so windows or layers share the cores out.

Two workers with a thread each solve 192 x 192 windows nearly twice as fast as one worker does with either setting.
"""

from __future__ import annotations

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


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()
