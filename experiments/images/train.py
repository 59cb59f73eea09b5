"""One training run: SGD with a cosine schedule, with or without a Balancer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import spectail as st
from experiments.images.data import Images, augmented
from spectail.training.history import Update
from spectail.training.rules import Rule


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; the same for every method but for ``rule``."""

    epochs: int
    batch: int
    lr: float
    seed: int
    momentum: float = 0.9
    weight_decay: float = 5e-4
    device: str = "cpu"


def fit(
    network: nn.Module,
    images: Images,
    recipe: Recipe,
    rule: Rule | None,
    look: st.Spec | None,
    on_update: Callable[[Update], None] | None = None,
) -> dict[str, Any]:
    """Train and tell accuracy on validation images, and alpha of every layer before and after.

    The learning rates of ``rule`` change once per epoch (None: one rate for all). ``look`` is
    how alphas are measured for the record, the same for every method; with None they are not.
    ``on_update`` is called with every change of rates.
    """
    network = network.to(recipe.device)
    # A fifth quicker on a CPU. torch's types know no memory format of a module.
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    pixels, labels = images.train
    steps = -(-len(labels) // recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * steps)
    balancer = (
        st.Balancer(network, optimizer, rule, every=None, on_update=on_update) if rule else None
    )
    before = alphas(network, look) if look else {}
    for _ in range(recipe.epochs):
        if balancer:
            balancer.update()
        network.train()
        for chosen in torch.randperm(len(labels), generator=generator).split(recipe.batch):
            batch = augmented(pixels[chosen].to(recipe.device), generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(batch), labels[chosen].to(recipe.device)).backward()
            optimizer.step()
            schedule.step()
    return {
        "validation": accuracy(network, images.validation),
        "alphas before": before,
        "alphas": alphas(network, look) if look else {},
    }


def accuracy(network: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """Per cent of images that are classified rightly."""
    network.eval()
    device = next(network.parameters()).device
    right = 0
    with torch.inference_mode():
        for images, labels in zip(part[0].split(500), part[1].split(500), strict=True):
            right += int((network(images.to(device)).argmax(dim=1).cpu() == labels).sum())
    return 100 * right / len(part[1])


def alphas(network: nn.Module, look: st.Spec) -> dict[str, float]:
    """Alpha by layer, of those that could be measured."""
    table = st.analyze(network, spec=look).table
    found = table[(table["status"] == "ok") & table["comparable"]]
    return {
        name: round(float(alpha), 4)
        for name, alpha in zip(found["name"], found["alpha"], strict=True)
    }


def spread(found: dict[str, float]) -> float:
    """Standard deviation of alpha across layers.

    Small where training is balanced, says the paper.
    """
    return float(np.std(list(found.values()), ddof=1)) if len(found) > 1 else float("nan")
