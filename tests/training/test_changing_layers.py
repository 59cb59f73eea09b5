"""Layers that are unfrozen, added or frozen while training are taken in, or
left out, at the next measurement.
"""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spectail as st
from spectail.errors import TrainingError
from spectail.training.rules import LLR
from tests.training.nets import net, same, train, weights_of
from tests.training.running import told_by


def set_trained(model: torch.nn.Sequential, name: str, trained: bool) -> None:
    model.get_submodule(name).requires_grad_(trained)
    if not trained:
        for p in model.get_submodule(name).parameters():
            p.grad = None


def frozen_net(*names: str) -> torch.nn.Sequential:
    model: torch.nn.Sequential = net()
    for name in names:
        set_trained(model, name, False)
    return model


def sgd(model: torch.nn.Sequential, **more: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, **more)


def rates_of(optimizer: torch.optim.SGD, model: torch.nn.Sequential) -> list[Any]:
    """Filled with the rate of every layer in every step."""
    seen = []
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer.register_step_pre_hook(
        lambda *_: seen.append(
            {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
        )
    )
    return seen


def test_a_layer_that_is_unfrozen_is_taken_in_and_told() -> None:
    model = frozen_net("5")
    optimizer = sgd(model)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    seen = rates_of(optimizer, model)
    train(model, optimizer, 3)
    assert list(balancer.factors) == ["3", "7"]
    assert balancer.left_out["5"] == "frozen"
    set_trained(model, "5", True)
    with pytest.warns(UserWarning, match="1 layers take part from now on, at step 4: 5") as told:
        train(model, optimizer, 3, start=3)
    assert len(told) == 1
    assert list(balancer.factors) == ["3", "5", "7"]
    assert "5" not in balancer.left_out
    assert sorted(balancer.history[1].alphas) == ["3", "5", "7"], "measured at once"
    assert seen[3]["5.weight"] == 0.1
    factors = balancer.history[1].factors
    assert [seen[4][f"{name}.weight"] for name in factors] == [
        0.1 * factor for factor in factors.values()
    ]
    assert seen[4]["5.bias"] == 0.1 * factors["5"]
    assert balancer.history.table.groupby("step").size().to_dict() == {2: 2, 4: 3, 6: 3}


def test_factors_are_those_of_a_balancer_that_is_built_on_the_unfrozen_model() -> None:
    model = frozen_net("5", "7")
    optimizer = sgd(model)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=None)
    for name in ("5", "7"):
        set_trained(model, name, True)
    with pytest.warns(UserWarning, match="2 layers take part from now on, at step 0: 5, 7"):
        balancer.update()
    fresh = st.Balancer(model, sgd(model), "tempbalance", every=None)
    fresh.update()
    assert balancer.factors == fresh.factors


def test_a_layer_that_comes_into_the_optimizer_later() -> None:
    model = frozen_net("5")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 2)
    set_trained(model, "5", True)
    optimizer.add_param_group({"params": list(model[5].parameters()), "lr": 0.01})
    seen = rates_of(optimizer, model)
    told = told_by(lambda: train(model, optimizer, 3, start=2))
    assert (
        "2 parameters came into the optimizer after the Balancer was built: layers of the model "
        "take part" in told[0]
    )
    assert "1 layers take part from now on, at step 4: 5" in told[1]
    assert len(told) == 2
    assert seen[0]["5.weight"] == 0.01
    assert seen[2]["5.weight"] == 0.01 * balancer.factors["5"]
    assert len(optimizer.param_groups) == 2


def test_a_layer_that_is_unfrozen_but_not_in_the_optimizer_is_told() -> None:
    model = frozen_net("5")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=1)
    set_trained(model, "5", True)
    with pytest.warns(
        UserWarning, match="1 layers of the model are not in the optimizer and are not measured: 5"
    ):
        train(model, optimizer, 1)
    assert balancer.left_out["5"] == "not in the optimizer"
    assert not told_by(lambda: train(model, optimizer, 3, start=1))


def test_a_module_that_is_added_to_the_model() -> None:
    model = net()
    optimizer = sgd(model)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 2)
    model.insert(8, nn.Linear(64, 64))
    optimizer.add_param_group({"params": list(model[8].parameters())})
    told = told_by(lambda: train(model, optimizer, 2, start=2))
    assert "1 layers take part from now on, at step 4: 8" in told[1]
    assert list(balancer.factors) == ["3", "5", "7", "8"]


def test_a_layer_that_is_frozen_takes_part_no_longer_until_it_is_trained_again() -> None:
    model = net()
    optimizer = sgd(model)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 2)
    set_trained(model, "5", False)
    with pytest.warns(UserWarning, match=r"1 layers take part no longer, at step 4: 5 \(frozen\)"):
        train(model, optimizer, 2, start=2)
    assert list(balancer.factors) == ["3", "7"]
    assert sorted(balancer.factors.values()) == [0.5, 1.5], (
        "the map is that of the layers that train"
    )
    set_trained(model, "5", True)
    with pytest.warns(UserWarning, match="1 layers take part from now on, at step 6: 5"):
        train(model, optimizer, 2, start=4)

    def again() -> None:
        for step in range(6, 14, 2):
            set_trained(model, "5", step % 4 == 0)
            train(model, optimizer, 2, start=step)

    assert not told_by(again), "layers that come and go are told once each"
    assert len(balancer.history.table) == 3 + 2 + 3 + 2 + 3 + 2 + 3


def test_a_model_whose_layers_are_all_frozen_at_first() -> None:
    model = frozen_net("3", "5", "7")
    optimizer = sgd(model)
    text = (
        r"no layer takes part now, .*: 3 \(frozen\), 5 \(frozen\), 7 \(frozen\); those that "
        r"are unfrozen"
    )
    with pytest.warns(UserWarning, match=text):
        balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 2)
    assert balancer.factors == {}
    assert "0 layers" in balancer.summary()
    state = json.loads(json.dumps(balancer.state_dict()))
    for name in ("7", "5"):
        set_trained(model, name, True)
    with pytest.warns(UserWarning, match="2 layers take part from now on, at step 4: 5, 7"):
        train(model, optimizer, 2, start=2)
    assert sorted(balancer.factors.values()) == [0.5, 1.5]
    balancer.load_state_dict(state)
    assert balancer.factors == {}
    with pytest.warns(UserWarning, match="2 layers take part from now on, at step 2: 5, 7"):
        balancer.update()


def test_when_all_are_frozen_later_that_is_said() -> None:
    model = net()
    balancer = st.Balancer(model, sgd(model), "tempbalance", every=None)
    balancer.update()
    before = balancer.factors
    for name in ("3", "5", "7"):
        set_trained(model, name, False)
    told = told_by(balancer.update)
    assert "no layer takes part now" in told[0]
    assert "3 layers take part no longer" in told[1]
    assert len(balancer.history) == 2
    set_trained(model, "3", True)
    set_trained(model, "5", True)
    set_trained(model, "7", True)
    assert "3 layers take part from now on" in "".join(told_by(balancer.update))
    assert balancer.factors == before


def test_a_layer_that_the_rule_leaves_out_stays_out_without_a_word() -> None:
    model = frozen_net("0")
    balancer = st.Balancer(model, sgd(model), "tempbalance", every=None)
    set_trained(model, "0", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        balancer.update()
    assert balancer.left_out["0"] == "the first layer"


def test_a_transition_begins_at_factor_1() -> None:
    model = frozen_net("5")
    optimizer = sgd(model)
    balancer = st.Balancer(model, optimizer, LLR(transition=4), every=6)
    train(model, optimizer, 6)
    set_trained(model, "5", True)
    with pytest.warns(UserWarning, match="take part from now on"):
        train(model, optimizer, 6, start=6)
    goal = balancer.history[-1].factors["5"]
    assert balancer.factors["5"] == pytest.approx(1 + (goal - 1) / 4)


def test_in_the_background_a_new_layer_gets_its_factor_one_measurement_later() -> None:
    model = frozen_net("5")
    optimizer = sgd(model)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=2, background=True)
    train(model, optimizer, 3)
    set_trained(model, "5", True)
    with pytest.warns(UserWarning, match="1 layers take part from now on, at step 4: 5"):
        train(model, optimizer, 1, start=3)
    assert balancer.factors["5"] == 1.0
    train(model, optimizer, 2, start=4)
    assert sorted(balancer.history[-1].alphas) == ["3", "5", "7"]
    set_trained(model, "3", False)
    with pytest.warns(UserWarning, match="1 layers take part no longer"):
        train(model, optimizer, 4, start=6)
    assert sorted(balancer.history[-1].alphas) == ["5", "7"]


UNFREEZE = 3
STEPS = 9


def gradual(
    stop_at: int | None = None, *, unfrozen_when_built: bool, order: str
) -> tuple[list[torch.Tensor], list[Any], st.Balancer]:
    """A run that unfreezes a layer before step 3 and measures every 2; stopped and
    resumed before step ``stop_at``.
    """
    model = frozen_net("5")
    optimizer = sgd(model, momentum=0.9)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    factors = []
    for step in range(STEPS):
        if step == stop_at:
            stored = copy.deepcopy(
                (
                    model.state_dict(),
                    optimizer.state_dict(),
                    json.loads(json.dumps(balancer.state_dict(), sort_keys=True)),
                )
            )
            model = net(seed=9) if unfrozen_when_built and step > UNFREEZE else frozen_net("5")
            optimizer = sgd(model, momentum=0.9)
            balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
            made: tuple[Any, ...] = (model, optimizer, balancer)
            pieces = list(zip(made, stored, strict=True))
            for piece, state in pieces if order == "last" else reversed(pieces):
                piece.load_state_dict(state)
        if step >= UNFREEZE:
            set_trained(model, "5", True)
        factors.append(balancer.factors)
        train(model, optimizer, 1, start=step)
    return weights_of(model), factors, balancer


@pytest.mark.filterwarnings("ignore:Balancer. 1 layers take part from now on")
@pytest.mark.parametrize("order", ["last", "first"])
@pytest.mark.parametrize("unfrozen_when_built", [False, True])
@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5, 7])
def test_gradual_unfreezing_is_resumed_exactly(
    stop_at: int, unfrozen_when_built: bool, order: str
) -> None:
    weights, factors, whole = gradual(unfrozen_when_built=False, order=order)
    again, same_factors, balancer = gradual(
        stop_at, unfrozen_when_built=unfrozen_when_built, order=order
    )
    assert same_factors == factors
    assert same(weights, again)
    assert balancer.history.table.equals(whole.history.table)


def test_the_state_of_another_model_is_refused_though_layers_may_come_in() -> None:
    state = st.Balancer(model := frozen_net("5"), sgd(model), "tempbalance", every=2).state_dict()
    assert state["waiting"] == ["5"]
    other = nn.Sequential(*net(), nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 4))
    with pytest.raises(TrainingError, match=r"other layers of it: it lacks 10$"):
        st.Balancer(other, sgd(other), "tempbalance", every=2).load_state_dict(state)


@pytest.mark.filterwarnings("ignore:Balancer. 1 layers take part")
def test_the_history_of_layers_that_came_later_is_kept(tmp_path: Path) -> None:
    _, _, balancer = gradual(unfrozen_when_built=False, order="last")
    balancer.history.save(tmp_path)
    again = type(balancer.history).load(tmp_path)
    assert again.table.equals(balancer.history.table)
    assert {trace.name for trace in again.plot().data} == {"3", "5", "7"}
