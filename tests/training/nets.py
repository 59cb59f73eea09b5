"""A small network whose layers a test knows by heart, data for it, and optimizers of every kind."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

UNITS = {
    "3": ("3.weight", "3.bias", "4.weight", "4.bias"),
    "5": ("5.weight", "5.bias"),
    "7": ("7.weight", "7.bias"),
}
"""The layers that take part, each with the parameters that follow it; 0 is the first layer, 8 the
last.
"""


def net(seed: int = 0) -> Any:
    """Layers 0, 3, 5, 7, 8 with two norms; the window is 64."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(16, 64),
        nn.LayerNorm(64),
        nn.ReLU(),
        nn.Linear(64, 96),
        nn.LayerNorm(96),
        nn.Linear(96, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.Linear(64, 4),
    )


def batch(step: int) -> torch.Tensor:
    """The data of one step, the same in every run."""
    return torch.randn(32, 16, generator=torch.Generator().manual_seed(step))


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    x = batch(step)
    loss: torch.Tensor = (model(x) - x[:, :4].sin()).square().mean()
    return loss


def train(
    model: nn.Module,
    optimizer: Any,
    steps: int,
    *,
    start: int = 0,
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
) -> None:
    """Plain steps; ``before`` and ``after`` are called with the number of each."""
    for step in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if before:
            before(step)
        optimizer.step()
        if after:
            after(step)


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Lion(torch.optim.Optimizer):
    """A user's own optimizer, with options of its own and a counter that it keeps in its groups."""

    def __init__(self, params: Any, speed: float = 0.9, lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr, "speed": speed, "counted": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["counted"] += 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["speed"])
                p.data = p.data - group["lr"] * average.sign()


class Around(torch.optim.Optimizer):
    """An optimizer around another one that shares its list of groups (as SAM or Lookahead do)."""

    def __init__(
        self,
        params: Any,
        inner: type[torch.optim.Optimizer],
        **options: Any,
    ) -> None:
        super().__init__(params, options)
        self.inner = inner(self.param_groups, **options)
        self.param_groups = self.inner.param_groups

    def step(self, closure: Any = None) -> Any:
        self.inner.step()


def matrices(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim == 2]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "sgd foreach": lambda ps: torch.optim.SGD(
        ps, lr=0.1, momentum=0.9, foreach=True, weight_decay=1e-2
    ),
    "sgd fused": lambda ps: torch.optim.SGD(
        ps, lr=0.1, momentum=0.9, fused=True, weight_decay=1e-2
    ),
    "adam": lambda ps: torch.optim.Adam(ps, lr=1e-2, amsgrad=True, weight_decay=1e-2),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=1e-2, weight_decay=0.1),
    "adamw foreach": lambda ps: torch.optim.AdamW(ps, lr=1e-2, foreach=True, weight_decay=0.1),
    "adamw fused": lambda ps: torch.optim.AdamW(ps, lr=1e-2, fused=True, weight_decay=0.1),
    "adamw tensor lr": lambda ps: torch.optim.AdamW(ps, lr=torch.tensor(1e-2), weight_decay=0.1),
    "adamw fused tensor lr": lambda ps: torch.optim.AdamW(
        ps, lr=torch.tensor(1e-2), fused=True, weight_decay=0.1
    ),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=1e-3, momentum=0.5, weight_decay=1e-2),
    "adafactor": lambda ps: torch.optim.Adafactor(ps, lr=1e-2, weight_decay=1e-2),
    "adadelta": lambda ps: torch.optim.Adadelta(ps, lr=0.5, weight_decay=1e-2),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=1e-2, lr_decay=0.1, weight_decay=1e-2),
    "adamax": lambda ps: torch.optim.Adamax(ps, lr=1e-2, weight_decay=1e-2),
    "asgd": lambda ps: torch.optim.ASGD(ps, lr=1e-2, weight_decay=1e-2),
    "nadam": lambda ps: torch.optim.NAdam(
        ps, lr=1e-2, weight_decay=1e-2, decoupled_weight_decay=True
    ),
    "radam": lambda ps: torch.optim.RAdam(ps, lr=1e-2, weight_decay=1e-2, foreach=True),
    "maximize": lambda ps: torch.optim.SGD(ps, lr=1e-4, maximize=True, weight_decay=1e-2),
    "own": lambda ps: Lion(ps),
    "around": lambda ps: Around(ps, torch.optim.SGD, lr=0.1, weight_decay=1e-2),
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["muon"] = lambda ps: torch.optim.Muon(ps, lr=1e-2, weight_decay=0.1)
