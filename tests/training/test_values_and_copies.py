"""Parameters without values, impossible states and copies of a Balancer: one error each."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from spectail.errors import TrainingError
from spectail.training.rules import TempBalance
from tests.training.nets import net, train
from tests.training.test_bad_input import balance, refused


@pytest.mark.parametrize("kind", ["lazy", "meta"])
def test_parameters_without_values(kind: str) -> None:
    """A lazy weight trained at the rate of the layer before it and was never measured."""
    layers = [nn.Linear(64, 64), nn.Linear(64, 64), nn.LazyLinear(64), nn.Linear(64, 64)]
    if kind == "meta":
        layers[2] = nn.Linear(64, 64, device="meta")
    refused(r"the parameter 2\.weight has no values yet", model=nn.Sequential(*layers))


def test_frozen_weights_without_values_are_no_matter() -> None:
    """accelerate keeps the weights of layers that it has offloaded on the meta device."""
    model = net()
    held = nn.Linear(64, 64, device="meta").requires_grad_(False)
    model.insert(6, held)
    trained = [p for p in model.parameters() if p.requires_grad]
    balancer = balance(model, torch.optim.SGD(trained, lr=0.1))
    assert "3" in balancer.factors


@pytest.mark.parametrize("change", [{"since": 100}, {"window": 0}, {"steps": 2, "since": 3}])
def test_a_state_that_no_run_can_have(change: dict[str, int]) -> None:
    """A change of factors that begins in the future would give rates below zero."""
    model = net()
    balancer = balance(model, rule=TempBalance(transition=5))
    train(model, balancer.optimizer, 6)
    factors = balancer.factors
    with pytest.raises(TrainingError, match="this is another or a damaged one"):
        balancer.load_state_dict(balancer.state_dict() | change)
    assert balancer.factors == factors


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_balancer_is_not_copied(copied: Callable[[Any], Any]) -> None:
    """A copy would follow the steps of no optimizer."""
    balancer = balance(model := net())
    with pytest.raises(
        TrainingError, match=r"cannot be copied or pickled: save its state_dict\(\)"
    ):
        copied(balancer)
    train(model, balancer.optimizer, 5)
    assert balancer.steps == 5
