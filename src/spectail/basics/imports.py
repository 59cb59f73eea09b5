"""Import slow libraries while something else is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from threading import Thread


@contextmanager
def importing(*modules: str) -> Iterator[None]:
    """Import modules in a thread of its own during the block, for use after it.

    Solvers release Python's lock, so the import uses time in which another core would wait. A
    module that is missing raises its error where it is used, as without this.
    """

    def import_all() -> None:
        with suppress(ImportError):
            for module in modules:
                import_module(module)

    thread = Thread(target=import_all, name="spectail-imports")
    thread.start()
    try:
        yield
    finally:
        thread.join()
