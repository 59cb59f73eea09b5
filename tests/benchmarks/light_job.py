"""A side that needs no torch: its process starts in a moment."""

import os


class Counter:
    """Counts how often it was asked, and knows its environment."""

    def __init__(self, first):
        self.calls = first

    def run(self):
        self.calls += 1
        return {"work": 0.25 * self.calls}

    def facts(self):
        return {"calls": self.calls, "variable": os.environ["BENCHMARK_SIDE"]}


class Broken(Counter):
    """Fails when it is asked."""

    def run(self):
        raise ValueError("this side is broken")
