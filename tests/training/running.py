"""Training with a Balancer, and the same with groups that a user makes by hand."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

import spectail as st
from tests.training.nets import UNITS, loss_of, net
from tests.training.wrapped import Case

STEPS, EVERY = 9, 3


def by_hand(model: torch.nn.Sequential) -> tuple[list[Any], list[str]]:
    """The groups that a Balancer makes of one group, and the layer of each."""
    groups = {unit: [model.get_parameter(name) for name in names] for unit, names in UNITS.items()}
    taken = {id(p) for held in groups.values() for p in held}
    groups = {"rest": [p for p in model.parameters() if id(p) not in taken], **groups}
    return [{"params": held} for held in groups.values()], list(groups)


def run(
    model: torch.nn.Sequential,
    case: Case,
    steps: int,
    *,
    start: int = 0,
    before: Callable[..., Any] = lambda step: None,
) -> None:
    """Plain steps, with a closure that computes the gradients."""
    for step in range(start, start + steps):

        def closure(step: int = step) -> torch.Tensor:
            model.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        closure()
        before(step)
        case.step(closure)


def balanced(
    make: Callable[..., Any], rule: str = "tempbalance"
) -> tuple[torch.nn.Sequential, Case, st.Balancer, list[Any]]:
    """Train with a Balancer; gives the factors and the base value of every step too."""
    model = net()
    case = make(model.parameters())
    if hasattr(case.given, "train"):
        case.given.train()
    balancer = st.Balancer(model, case.given, rule, every=EVERY)
    told: list[Any] = []
    run(
        model,
        case,
        STEPS,
        before=lambda _: told.append((balancer.factors, value_of(case, balancer))),
    )
    return model, case, balancer, told


def value_of(case: Case, balancer: st.Balancer) -> float | torch.Tensor:
    value = case.groups[0][balancer.rule.option]
    return value.clone() if isinstance(value, torch.Tensor) else value


def with_groups_by_hand(
    make: Callable[..., Any], told: list[Any], option: str = "lr"
) -> tuple[torch.nn.Sequential, Case]:
    """The same training by a user who has made a group per layer and sets its value before every
    step.
    """
    model = net()
    groups, names = by_hand(model)
    case = make(groups)
    for group in case.groups:
        if isinstance(group[option], torch.Tensor):
            group[option] = group[option].clone()
    if hasattr(case.given, "train"):
        case.given.train()

    def before(step: int) -> None:
        factors, base = told[step]
        for i, group in enumerate(case.groups):
            factor = factors.get(names[i % len(names)], 1.0)
            value = base if factor == 1 else base * factor
            group[option] = value.clone() if isinstance(value, torch.Tensor) else value

    run(model, case, STEPS, before=before)
    return model, case


def told_by(action: Callable[..., Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        action()
    return [str(warning.message) for warning in told]
