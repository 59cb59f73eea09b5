"""A Balancer is never silently without effect: it refuses at the start, or warns."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import spectail as st
from spectail.errors import TrainingError
from tests.training.nets import loss_of, net, train
from tests.training.optimizers import REFUSED, WITHOUT_EFFECT, Anew
from tests.training.running import EVERY, by_hand, told_by
from tests.training.wrapped import SAM


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_split_is_refused_when_the_balancer_is_built(name: str) -> None:
    make, text = REFUSED[name]
    model = net()
    with pytest.raises(TrainingError, match=text):
        st.Balancer(model, make(model.parameters()), "tempbalance", every=EVERY)


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_does_not_go_by_the_rate_is_told(name: str) -> None:
    model = net()
    with pytest.warns(
        UserWarning, match="were the same with half the lr: it does not go by the lr of its groups"
    ):
        st.Balancer(model, WITHOUT_EFFECT[name](model.parameters()), "tempbalance", every=EVERY)


def test_groups_that_cannot_be_changed_are_told_after_the_first_measurement() -> None:
    model = net()
    optimizer = Anew(model.parameters())
    st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 2)
    text = (
        "the optimizer steps with another lr than it was given for 3, 5, 7: the factors "
        "have no effect there"
    )
    with pytest.warns(UserWarning, match=text) as told:
        train(model, optimizer, 4, start=2)
    assert len(told) == 1


def test_gradients_that_are_there_already_stay() -> None:
    model = net()
    loss_of(model, 0).backward()
    before = [p.grad for p in model.parameters()]
    st.Balancer(model, torch.optim.SGD(model.parameters(), lr=0.1), "tempbalance", every=2)
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), before, strict=True))
    with pytest.raises(TrainingError, match="OneRate cannot be balanced"):
        st.Balancer(model, REFUSED["one rate"][0](model.parameters()), "tempbalance", every=2)


UNUSED = "but not in step() of the SGD that the Balancer is on"


def made_anew(model: torch.nn.Sequential, optimizer: Any) -> Callable[..., Any]:
    return torch.optim.SGD(model.parameters(), lr=0.1).step


def step_of_its_own(model: torch.nn.Sequential, optimizer: Any) -> Callable[..., Any]:
    def step() -> None:
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is not None
                p.sub_(p.grad, alpha=0.1)

    return step


def through_data(model: torch.nn.Sequential, optimizer: Any) -> Callable[..., Any]:
    def step() -> None:
        for p in model.parameters():
            assert p.grad is not None
            p.data = p.data - 0.1 * p.grad

    return step


def unhooked(model: torch.nn.Sequential, optimizer: Any) -> Callable[..., Any]:
    return lambda: type(optimizer).step.__wrapped__(optimizer)


@pytest.mark.parametrize("other", [made_anew, step_of_its_own, through_data, unhooked])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_weights_that_change_without_a_step_are_told_once(
    other: Callable[..., Any], accumulated: int
) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    st.Balancer(model, optimizer, "tempbalance", every=2)
    assert not told_by(lambda: train(model, optimizer, 4))
    step = other(model, optimizer)

    def go() -> None:
        for i in range(16):
            model.zero_grad()
            for _ in range(accumulated):
                loss_of(model, i).backward()
            step()

    assert [UNUSED in text for text in told_by(go)] == [True]


@pytest.mark.parametrize("passes", [1, 4, 40])
def test_accumulated_gradients_are_no_matter(passes: int) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    st.Balancer(model, optimizer, "tempbalance", every=2)

    def go() -> None:
        for i in range(3):
            for _ in range(passes):
                loss_of(model, i).backward()
            optimizer.step()
            optimizer.zero_grad()

    assert not told_by(go)


def test_weights_that_sam_moves_and_puts_back_are_no_matter() -> None:
    model = net()
    sam = SAM(model.parameters(), lr=0.05)
    balancer = st.Balancer(model, sam, "tempbalance", every=2)

    def go() -> None:
        for step in range(4):
            for part in range(12):  # the gradient at the top of each climb is accumulated
                before = [p.grad for p in model.parameters()]
                model.zero_grad()
                loss_of(model, 100 * step + part).backward()
                sam.first_step()
                for p, gradient in zip(model.parameters(), before, strict=True):
                    p.grad = gradient if part else None
                loss_of(model, 100 * step + part).backward()
                with torch.no_grad():
                    for p in model.parameters():
                        p.sub_(sam.state[p].pop("climbed"))
            sam.second_step()

    assert not told_by(go)
    assert balancer.steps == 4


def test_weights_that_are_loaded_once_are_no_matter() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    st.Balancer(model, optimizer, "tempbalance", every=2)

    def go() -> None:
        for i in range(20):
            if i == 3:
                model.load_state_dict(net(1).state_dict())
            loss_of(model, i).backward()

    assert not told_by(go)


def test_a_new_balancer_takes_the_place_of_one_that_nobody_removed() -> None:
    model = net()
    st.Balancer(model, torch.optim.SGD(model.parameters(), lr=0.1), "tempbalance", every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    st.Balancer(model, optimizer, "tempbalance", every=2)
    assert not told_by(lambda: train(model, optimizer, 12))


def test_parameters_that_are_replaced_in_the_groups_are_told() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    st.Balancer(model, optimizer, "tempbalance", every=50)
    group = optimizer.param_groups[0]
    group["params"] = [nn.Parameter(torch.cat([p.detach().flatten() for p in group["params"]]))]
    told = told_by(lambda: train(model, optimizer, 2))
    assert (
        "3 layers are no longer in the optimizer, so that their factors have no effect: 3, 5, 7"
        in "".join(told)
    )
    assert len(told) == 2


def test_no_measurement_at_all_is_told_at_the_end() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for every, why in (
        (100, "it measures every 100 steps"),
        (None, r"update\(\) was never called"),
    ):
        balancer = st.Balancer(model, optimizer, "tempbalance", every=every)
        train(model, optimizer, 3)
        with pytest.warns(
            UserWarning, match=f"nothing was measured in 3 steps, so that every factor was 1: {why}"
        ):
            balancer.remove()


def test_weight_decay_that_does_not_reach_the_layers_is_told() -> None:
    model = net()
    groups, _ = by_hand(model)
    groups[0]["weight_decay"] = 0.1
    with pytest.raises(TrainingError, match=r"3 \(its group has a weight decay of 0\)"):
        st.Balancer(model, torch.optim.SGD(groups, lr=0.1), "alphadecay", every=2)
    groups[1]["weight_decay"] = groups[2]["weight_decay"] = 0.1
    optimizer = torch.optim.SGD(groups, lr=0.1)
    balancer = st.Balancer(model, optimizer, "alphadecay", every=2)
    assert balancer.left_out["7"] == "its group has a weight decay of 0"
    optimizer.param_groups[3]["weight_decay"] = 0.1
    with pytest.warns(UserWarning, match="1 layers take part from now on, at step 2: 7"):
        train(model, optimizer, 2)
    assert list(balancer.factors) == ["3", "5", "7"]
