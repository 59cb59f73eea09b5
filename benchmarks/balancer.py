"""What a Balancer costs: ResNet-18 trained with and without one, measured once per epoch.

11 million weights, images of 32 x 32 as in CIFAR: an epoch is 391 steps of 128. Three sides
train the same steps: ``plain``, ``balanced`` (with the time of one measurement apart) and
``background`` (a copy is measured while the steps run). The overhead is (measurement + an epoch
of the hooks' extra time) / an epoch of plain steps; the target is 2 %.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from torch import nn

import spectail as st
from benchmarks.common import Side, clock, paired, run_sides
from benchmarks.training import QUICK_WIDTHS, WIDTHS, network

TARGET = 0.02
EPOCH = 391
"""Steps: 50,000 images in batches of 128."""
SIDES = ("plain", "balanced", "background")


class Training:
    """A few steps of SGD; with a Balancer a measurement apart, or while they run."""

    def __init__(self, side: str, widths: tuple[int, ...], steps: int, batch: int) -> None:
        self.side, self.steps = side, steps
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = network(widths).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4
        )
        self.images = torch.randn(batch, 3, 32, 32, device=self.device)
        self.labels = torch.randint(0, 1000, (batch,), device=self.device)
        self.balancer = None
        if side != "plain":
            background = side == "background"
            self.balancer = st.Balancer(
                self.model, self.optimizer, "tempbalance", every=None, background=background
            )

    def run(self) -> dict[str, float]:
        """The steps, and the measurement before them."""
        seconds: dict[str, float] = {}
        if self.balancer is not None:
            with clock(seconds, "update"):
                self.balancer.update()
        self._wait()
        with clock(seconds, "steps"):
            for _ in range(self.steps):
                self.optimizer.zero_grad()
                nn.functional.cross_entropy(self.model(self.images), self.labels).backward()
                with clock(seconds, "optimizer"):
                    self.optimizer.step()
            self._wait()
            if self.balancer is not None and self.side == "background":
                self.balancer.state_dict()  # waits until the measurement is complete
        return seconds

    def facts(self) -> dict[str, Any]:
        """How much was trained, and where."""
        layers = len(self.balancer.factors) if self.balancer is not None else 0
        return {
            "steps": self.steps,
            "batch": len(self.images),
            "device": self.device,
            "layers": layers,
        }

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps per round and side")
    parser.add_argument("--batch", type=int, default=128)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All sides in turn."""
    widths = QUICK_WIDTHS if options.quick else WIDTHS
    steps, batch = (2, 4) if options.quick else (options.steps, options.batch)
    outcomes = run_sides(
        {side: Side(Training, (side, widths, steps, batch)) for side in SIDES}, options.rounds
    )
    seconds = {side: outcome.seconds for side, outcome in outcomes.items()}
    plain = seconds["plain"]
    return {
        "sides": {name: outcome.to_dict() for name, outcome in outcomes.items()},
        "target": TARGET,
        "overhead_per_epoch": {
            "balanced": overhead(
                plain, seconds["balanced"], "optimizer", repeated=EPOCH / steps, steps=steps
            ),
            "background": overhead(plain, seconds["background"], "steps", repeated=1, steps=steps),
        },
        "ratios": {
            f"{side} / plain, steps": paired(seconds[side]["steps"], plain["steps"])
            for side in SIDES[1:]
        },
    }


def overhead(
    plain: dict[str, list[float]],
    side: dict[str, list[float]],
    slower: str,
    *,
    repeated: float,
    steps: int,
) -> float:
    """Share of an epoch's plain time that a measurement and the ``slower`` phase add.

    Both are medians over the rounds. ``repeated`` is how often the extra time of that phase in
    these ``steps`` comes in an epoch.
    """
    epoch = statistics.median(plain["steps"]) / steps * EPOCH
    extra = (
        statistics.median(b - p for b, p in zip(side[slower], plain[slower], strict=True))
        * repeated
    )
    return round((statistics.median(side["update"]) + max(0.0, extra)) / epoch, 5)
