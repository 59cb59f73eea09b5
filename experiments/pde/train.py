"""One training run, and the error of what came out.

Adam with a cosine schedule, with or without a Balancer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import spectail as st
from experiments.pde.data import Pairs, Scale
from spectail.training.history import Update
from spectail.training.rules import Rule


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; the same for every method but for its rule."""

    steps: int
    batch: int
    lr: float
    seed: int
    every: int
    """Steps between two measurements of a Balancer."""
    weight_decay: float = 1e-4
    device: str = "cpu"


def fit(
    network: nn.Module,
    pairs: Pairs,
    recipe: Recipe,
    rule: Rule | None,
    on_update: Callable[[Update], None] | None = None,
) -> Scale:
    """Train on the pairs, with the relative L2 error as loss.

    The scale tells how to use the network.

    The learning rates of ``rule`` change every ``recipe.every`` steps, the first time before the
    first step (None: one rate for all). ``on_update`` is called with every change.
    """
    network.to(recipe.device).train()
    scale = Scale.of(pairs)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    balancer = (
        st.Balancer(network, optimizer, rule, every=None, on_update=on_update) if rule else None
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    waiting: list[Tensor] = []
    for step in range(recipe.steps):
        if balancer and step % recipe.every == 0:
            balancer.update()
        waiting = waiting or list(
            torch.randperm(len(pairs[0]), generator=generator).split(recipe.batch)
        )
        chosen = waiting.pop()
        inputs, solutions = (part[chosen].to(recipe.device) for part in pairs)
        optimizer.zero_grad()
        relative_error(predicted(network, inputs, scale), solutions).mean().backward()
        optimizer.step()
        schedule.step()
    if balancer:
        balancer.remove()
    return scale


def predicted(network: nn.Module, inputs: Tensor, scale: Scale) -> Tensor:
    """Solutions in their own unit.

    The network sees and gives values of mean 0 and standard deviation 1.
    """
    (mean, deviation), (offset, size) = scale.inputs, scale.solutions
    found: Tensor = network((inputs - mean) / deviation) * size + offset
    return found


def relative_error(found: Tensor, true: Tensor) -> Tensor:
    """||found - true||_2 / ||true||_2 of each pair, shape (n,)."""
    result: Tensor = (found - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)
    return result


def nrmse(network: nn.Module, pairs: Pairs, scale: Scale) -> float:
    """Normalised root-mean-square error: the mean over pairs of the relative L2 error."""
    network.eval()
    device = next(network.parameters()).device
    with torch.inference_mode():
        errors = [
            relative_error(predicted(network, inputs.to(device), scale), solutions.to(device))
            for inputs, solutions in zip(pairs[0].split(100), pairs[1].split(100), strict=True)
        ]
    return float(torch.cat(errors).mean())


def error_of_mean(train: Pairs, pairs: Pairs) -> float:
    """The error of giving the mean training solution for every input: what a network must beat."""
    mean = train[1].mean(dim=0, keepdim=True)
    return float(relative_error(mean.expand_as(pairs[1]), pairs[1]).mean())


def alphas(network: nn.Module, look: st.Spec) -> dict[str, float]:
    """Alpha by layer, of those that could be measured."""
    table = st.analyze(network, spec=look).table
    found = table[(table["status"] == "ok") & table["comparable"]]
    return {
        name: round(float(alpha), 4)
        for name, alpha in zip(found["name"], found["alpha"], strict=True)
    }
