"""Controls of learning rates by alpha: the factors stay the same ones,
and only their places change."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spectail as st
from experiments.controls import (
    ByDepth,
    ByKind,
    Constant,
    Shuffled,
    ShuffledOnce,
    control_of,
    depth_order,
)

DEPTH = ["first", "second", "third", "fourth", "fifth"]
RULES = [
    st.TempBalance(map="linear:0.1:1.9", include_first_last=True),
    st.TBSigmoid(map="sigmoid:1", include_first_last=True, exclude=["third"]),
]


class Net(nn.Module):
    """Lists its layers in another order than it runs them; no alpha follows either order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, tail in (("third", 0), ("fifth", 3), ("first", 1), ("fourth", 2), ("second", 4)):
            layer = nn.Linear(64, 64)
            with torch.no_grad():
                layer.weight *= torch.arange(1, 65.0) ** (-tail / 2)
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> Any:
        for name in DEPTH:
            x = getattr(self, name)(x)
        return x


def factors(rule: Any, rounds: int = 1) -> list[Any]:
    """The factors of each round of measuring; the weights change between
    rounds, the same way every time."""
    network = Net()
    balancer = st.Balancer(network, torch.optim.SGD(network.parameters()), rule, every=None)
    found = []
    for _ in range(rounds):
        balancer.update()
        found.append({name: balancer.factors[name] for name in DEPTH if name in balancer.factors})
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p), alpha=0.05)
    return found


def places(found: Any, by_alpha: Any) -> list[Any]:
    """For each round, the layer whose factor by alpha each layer has."""
    rounds = []
    for ours, theirs in zip(found, by_alpha, strict=True):
        owner = {factor: name for name, factor in theirs.items()}
        assert len(owner) == len(theirs)
        rounds.append(tuple(owner[factor] for factor in ours.values()))
    return rounds


def test_depth_is_the_order_in_which_layers_run() -> None:
    network: Any = Net().train()
    assert [name for name in depth_order(network, torch.zeros(1, 64)) if name] == DEPTH
    assert network.training
    assert not network.first._forward_pre_hooks


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rising", [True, False])
def test_by_depth_sorts_the_factors_along_the_depth(rule: Any, rising: bool) -> None:
    order = depth_order(Net(), torch.zeros(1, 64))
    by_alpha = factors(rule, rounds=3)
    found = factors(control_of(rule, ByDepth(order, rising)), rounds=3)
    for ours, theirs in zip(found, by_alpha, strict=True):
        assert list(ours) == [name for name in DEPTH if name in theirs]
        assert list(theirs.values()) != sorted(theirs.values(), reverse=not rising)
        assert list(ours.values()) == sorted(theirs.values(), reverse=not rising)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shuffle", [Shuffled, ShuffledOnce])
def test_shuffles_keep_the_factors_of_every_round(rule: Any, shuffle: Any) -> None:
    by_alpha = factors(rule, rounds=12)
    found = factors(control_of(rule, shuffle(3)), rounds=12)
    assert found == factors(control_of(rule, shuffle(3)), rounds=12)
    seen = places(found, by_alpha)
    assert all(sorted(names) == sorted(by_alpha[0]) for names in seen)
    assert (len(set(seen)) > 6) is (shuffle is Shuffled)
    assert shuffle is Shuffled or len(set(seen)) == 1
    others = [places(factors(control_of(rule, shuffle(s))), by_alpha[:1])[0] for s in range(12)]
    assert len(set(others)) > 6


@pytest.mark.parametrize("rule", RULES)
def test_constant_gives_the_same_layers_the_mean_factor(rule: Any) -> None:
    by_alpha = factors(rule, rounds=3)
    for ours, theirs in zip(factors(control_of(rule, Constant()), rounds=3), by_alpha, strict=True):
        assert ours == pytest.approx(dict.fromkeys(theirs, np.mean(list(theirs.values()))))


def test_by_kind_gives_the_layers_of_a_kind_their_mean_factor() -> None:
    names = ("blocks.0.skip", "blocks.10.skip", "blocks.0.mlp.0", "blocks.1.mlp.1", "head")
    found = ByKind().arranged(np.array([1.0, 2.0, 3.0, 7.0, 9.0]), names)
    assert found.tolist() == [1.5, 1.5, 5, 5, 9]


def test_a_control_says_what_it_is_and_keeps_the_settings_of_the_rule() -> None:
    rule: Any = RULES[1]
    settings = control_of(rule, Shuffled(7)).settings()
    assert settings.pop("rule") == "control"
    assert settings.pop("arrangement") == "Shuffled(seed=7)"
    assert settings == {key: value for key, value in rule.settings().items() if key != "rule"}
