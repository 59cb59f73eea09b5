"""What an optimizer keeps per group is kept per layer, as in groups made by hand."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import spectail as st
from tests.training.nets import net, same, train, weights_of
from tests.training.optimizers import STATEFUL, ByName, Remembering, ScheduleFree
from tests.training.running import EVERY, STEPS, balanced, run, told_by, with_groups_by_hand
from tests.training.wrapped import SAM, Case


@pytest.mark.parametrize("name", STATEFUL)
def test_state_per_group_is_that_of_groups_made_by_hand(name: str) -> None:
    def make(params: Iterator[Any] | list[Any]) -> Case:
        made = STATEFUL[name](params)
        return Case(made, made.param_groups)

    model, case, _, told = balanced(make)
    other, hand = with_groups_by_hand(make, told)
    assert same(weights_of(model), weights_of(other))
    if hasattr(case.given, "eval"):
        case.given.eval()
        hand.given.eval()
        assert same(weights_of(model), weights_of(other)), "the averaged weights too"
        assert not case.groups[0]["train_mode"]


def test_the_users_group_shows_the_state_of_the_base_rate() -> None:
    _, case, _, _ = balanced(
        lambda ps: (lambda made: Case(made, made.param_groups))(ScheduleFree(ps))
    )
    plain = net()
    alone = ScheduleFree(plain.parameters())
    alone.train()
    train(plain, alone, STEPS)
    group, expected = case.groups[0], alone.param_groups[0]
    assert {key: group[key] for key in ("k", "lr_max", "weight_sum")} == {
        key: expected[key] for key in ("k", "lr_max", "weight_sum")
    }
    assert len(case.given.state_dict()["param_groups"]) == 1


@pytest.mark.parametrize("order", ["optimizer first", "balancer first"])
@pytest.mark.parametrize("through", ["torch", "json"])
@pytest.mark.parametrize("name", [*STATEFUL, "sam"])
def test_a_resumed_run_is_the_same_with_state_per_group(
    name: str, through: str, order: str
) -> None:
    def make(params: Iterator[Any]) -> Case:
        made = SAM(params, torch.optim.SGD, lr=0.05) if name == "sam" else STATEFUL[name](params)
        return Case(made, made.param_groups, "two calls" if name == "sam" else "step")

    whole, _, _, _ = balanced(make)
    model = net()
    states: list[Any] = []
    for start, stop in ((0, 4), (4, 5), (5, STEPS)):
        case = make(model.parameters())
        balancer = st.Balancer(model, case.given, "tempbalance", every=EVERY)
        if start:
            stored = [copy.deepcopy(piece) for piece in states]
            pieces = [(case.given, stored[0]), (balancer, stored[1])]
            for piece, state in pieces if order == "optimizer first" else reversed(pieces):
                piece.load_state_dict(state)
        elif hasattr(case.given, "train"):
            case.given.train()
        run(model, case, stop - start, start=start)
        states = [case.given.state_dict(), balancer.state_dict()]
        if through == "json":
            states[1] = json.loads(json.dumps(states[1], allow_nan=False, sort_keys=True))
    assert same(weights_of(whole), weights_of(model))


def test_state_per_group_that_cannot_be_stored_is_told() -> None:
    model = net()
    optimizer = Remembering(model.parameters())
    balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 3)
    with pytest.warns(
        UserWarning, match="the state is stored without 'seen' of the layers' groups, a set"
    ):
        state = balancer.state_dict()
    json.dumps(state)
    assert not told_by(balancer.state_dict)


def test_a_value_that_the_user_sets_counts_for_all_parts() -> None:
    model = net()
    optimizer = STATEFUL["travelled"](model.parameters())
    st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 4)
    optimizer.param_groups[0]["travelled"] = 7.0
    seen: list[Any] = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.extend(g["travelled"] for g in optimizer.param_groups)
    )
    train(model, optimizer, 1, start=4)
    assert seen == [7.0] * 4


@pytest.mark.skipif(torch.__version__ < "2.6", reason="groups have no names there")
def test_names_of_parameters_are_split_with_them() -> None:
    model, other = net(), net()
    optimizer = ByName(model.named_parameters())
    balancer = st.Balancer(model, optimizer, "tempbalance:linear:1.0:1.0", every=2)
    train(model, optimizer, 4)
    train(other, ByName(other.named_parameters()), 4)
    assert balancer.steps == 4
    assert same(weights_of(model), weights_of(other))
