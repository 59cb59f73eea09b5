"""ResNet-18 measured while it trains, against plain SVDs.

``st.analyze(model)`` runs in-process, after a warm-up. 11 million weights, the ImageNet shape. The
target is under a second on 2 cores. ``plain`` does what the published procedure does with the same
windows: one SVD per window of every kernel slice, one after the other, median fit.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn

import spectail as st
from benchmarks import plain
from benchmarks.common import Side, clock, paired, run_sides
from experiments.images.networks import Residual
from spectail.core.measure import too_small
from spectail.core.windows import largest_fit, window_shape
from spectail.measuring.planning import make_plan

TARGET = 1.0
"""Seconds."""
WIDTHS = (64, 128, 256, 512)
QUICK_WIDTHS = (16, 32, 64, 64)


class ResNet18(nn.Module):
    """He et al. 2016, with torchvision's parameter names."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        layers = []
        for width, stride in zip(widths, (1, 2, 2, 2), strict=True):
            layers.append(nn.Sequential(Residual(inputs, width, stride), Residual(width, width, 1)))
            inputs = width
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, height, width) to scores (n, classes)."""
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        scores: Tensor = self.fc(x.mean((2, 3)))
        return scores


def network(widths: tuple[int, ...]) -> ResNet18:
    """A freshly initialised network, the same every time."""
    torch.manual_seed(0)
    return ResNet18(widths)


class Spectail:
    """``st.analyze`` of the live module."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        self.model = network(widths)

    def run(self) -> dict[str, float]:
        """One measurement of the whole network."""
        seconds: dict[str, float] = {}
        with clock(seconds, "measurement"):
            self.analysis = st.analyze(self.model)
        return seconds

    def facts(self) -> dict[str, Any]:
        """What was measured."""
        table = self.analysis.table
        return {
            "weights": sum(p.numel() for p in self.model.parameters()),
            "layers": len(table),
            "window": self.analysis.run.window,
            "windows": int(table["n_windows"].sum()),
            "alpha": dict(zip(table["name"], table["alpha"], strict=True)),
        }


class Plain:
    """One SVD per window of every kernel slice, pooled by layer, median."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        self.model = network(widths)

    def run(self) -> dict[str, float]:
        """One measurement of the whole network."""
        seconds: dict[str, float] = {}
        spec = st.presets.FARMS
        plan = make_plan(self.model, spec=spec)
        self.alphas = {}
        with clock(seconds, "measurement"):
            for layer in plan.layers:
                shape = layer.rows, layer.cols
                if too_small(shape, spec):
                    continue
                side = min(largest_fit(*shape), plan.run.window or 1024)
                window = window_shape(*shape, side)
                corners = spec.placement.positions(*shape, window)
                found = [
                    plain.pooled_eigenvalues(m, window, corners) for m in layer.read().detach()
                ]
                self.alphas[layer.name] = plain.fit(
                    torch.sort(torch.cat(found)).values, "median"
                ).alpha
        return seconds

    def facts(self) -> dict[str, Any]:
        """Alpha by layer."""
        return {"alpha": self.alphas}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=5)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn."""
    args = (QUICK_WIDTHS if options.quick else WIDTHS,)
    outcomes = run_sides(
        {"spectail": Side(Spectail, args), "plain": Side(Plain, args)}, options.rounds
    )
    own, other = (outcomes[side].seconds["measurement"] for side in ("spectail", "plain"))
    alphas = {side: outcome.facts.pop("alpha") for side, outcome in outcomes.items()}
    return {
        "sides": {name: outcome.to_dict() for name, outcome in outcomes.items()},
        "target_seconds": TARGET,
        "slowest_seconds": round(max(own), 3),
        "ratios": {"plain / spectail": paired(other, own)},
        "largest_alpha_difference": max(
            abs(alphas["spectail"][k] - alphas["plain"][k]) for k in alphas["plain"]
        ),
    }
