"""A side that needs no torch: its process starts in a moment."""

import os
from typing import Any


class Counter:
    """Counts how often it was asked, and knows its environment."""

    def __init__(self, first: int) -> None:
        self.calls = first

    def run(self) -> dict[str, float]:
        self.calls += 1
        return {"work": 0.25 * self.calls}

    def facts(self) -> dict[str, Any]:
        return {"calls": self.calls, "variable": os.environ["BENCHMARK_SIDE"]}


class Broken(Counter):
    """Fails when it is asked."""

    def run(self) -> dict[str, float]:
        raise ValueError("this side is broken")
