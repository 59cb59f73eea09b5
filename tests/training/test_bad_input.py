"""What cannot be balanced is one clear error, what is odd one warning;
training is never changed in silence.
"""

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spectail as st
from spectail.errors import TrainingError
from spectail.training.history import History
from spectail.training.rules import LLR, TempBalance, as_rule
from tests.training.nets import net, same, train, weights_of


def sgd(model: torch.nn.Module, **more: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, **more)


def balance(
    model: Any = None,
    optimizer: Any = None,
    rule: Any = "tempbalance",
    **more: Any,
) -> st.Balancer:
    model = net() if model is None else model
    return st.Balancer(model, optimizer or sgd(model), rule, **{"every": 5, **more})


def refused(text: str, **arguments: Any) -> None:
    with pytest.raises(TrainingError, match=text):
        balance(**arguments)


def test_a_model_without_matrices() -> None:
    refused(
        "LayerNorm has no weight matrices to balance: 2 vectors, nothing else",
        model=nn.LayerNorm(64),
    )


def test_a_model_that_is_none() -> None:
    refused("expected a torch module to balance, not dict", model={}, optimizer=sgd(net()))


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "epoch"])
def test_every(every: float | str) -> None:
    refused(
        r"every must be a whole number of optimizer steps of at least 1 "
        r"\(len\(loader\) for once per epoch\), "
        rf"or None to call update\(\) yourself, not {every!r}",
        every=every,
    )


def test_an_optimizer_of_another_model() -> None:
    refused(
        r"the optimizer holds none of the model's parameters \(such as 0.weight\)",
        optimizer=sgd(net()),
    )


def test_an_optimizer_that_lacks_some_layers() -> None:
    model = net()
    some = [p for name, p in model.named_parameters() if not name.startswith("5.")]
    with pytest.warns(
        UserWarning, match="1 layers of the model are not in the optimizer and are not measured: 5"
    ):
        balancer = balance(model, torch.optim.SGD(some, lr=0.1))
    assert list(balancer.factors) == ["3", "7"]
    assert balancer.left_out["5"] == "not in the optimizer"


def test_layers_of_another_optimizer_that_the_rule_leaves_out_are_no_matter() -> None:
    model = net()
    ends = [model[0].weight, model[8].weight]
    inner = [p for p in model.parameters() if p.ndim == 2 and all(p is not end for end in ends)]
    balancer = balance(model, torch.optim.SGD(inner, lr=0.1))
    assert list(balancer.factors) == ["3", "5", "7"]


def test_a_captured_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    balancer = balance(model)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.warns(UserWarning, match="a captured step runs no hooks when it is replayed"):
        train(model, balancer.optimizer, 1)


def test_frozen_layers_are_left_out_without_a_warning() -> None:
    model = net()
    model[5].requires_grad_(False)
    assert balance(model).left_out["5"] == "frozen"


def test_an_optimizer_that_is_none() -> None:
    refused(
        r"expected a torch.optim.Optimizer \(a subclass that calls its __init__\), not str",
        optimizer="sgd",
    )


def test_lbfgs() -> None:
    model = net()
    refused(
        "LBFGS takes one step along all parameters",
        model=model,
        optimizer=torch.optim.LBFGS(model.parameters()),
    )


def test_a_parameter_in_two_groups() -> None:
    model = net()
    optimizer = sgd(model)
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [model[5].weight]})
    refused(
        "the parameter 5.weight is in groups 0 and 1: give each parameter to one",
        model=model,
        optimizer=optimizer,
    )


def test_a_parameter_twice_in_one_group() -> None:
    model = net()
    optimizer = sgd(model)
    optimizer.param_groups[0]["params"].append(model[5].weight)
    refused("the parameter 5.weight is in groups 0, twice", model=model, optimizer=optimizer)


def test_groups_without_the_option() -> None:
    class Plain(torch.optim.Optimizer):
        def __init__(self, params: Iterator[Any]) -> None:
            super().__init__(params, {"speed": 1.0})

    model = net()
    refused(
        "group 0 of Plain has no 'lr' to scale; its options are speed",
        model=model,
        optimizer=Plain(model.parameters()),
    )


def test_no_weight_decay_to_scale() -> None:
    refused("every group has a weight decay of 0", rule="alphadecay")


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("fast", "the rule must be one of tempbalance, tb-sigmoid, llr, alphadecay"),
        (3, "the rule must be one of tempbalance, .*, not 3"),
        ("tempbalance:cubic", "the rule 'tempbalance:cubic' cannot be used: map must be one of"),
        (
            "llr:sqrt",
            "llr only scales up: its map must be linear:LOW:HIGH with LOW of at least 1, .* not "
            "sqrt",
        ),
        ("llr:linear:0.5:5.0", "llr only scales up"),
    ],
)
def test_rules(rule: str | int, text: str) -> None:
    refused(text, rule=rule)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"transition": -1}, "transition must be a whole number of at least 0, not -1"),
        ({"include": "fc"}, r"include must be a list of globs, not the text 'fc': write \['fc'\]"),
        ({"spec": "farms"}, "spec must be a st.Spec or one of st.presets, not 'farms'"),
        ({"level": "model"}, "level must be block or layer, not 'model'"),
    ],
)
def test_rule_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(st.SpectailError, match=text):
        TempBalance(**options)


def test_globs() -> None:
    refused(
        "include 'fc' matches none of the 5 layers; they are 0, 3, 5, 7 and 1 more",
        rule=TempBalance(include=("fc",)),
    )
    refused("exclude 'fc' matches none of the 5 layers", rule=TempBalance(exclude=("fc",)))
    refused(
        r"no layer takes part in tempbalance: 3 \(excluded\), 5 \(excluded\).*; "
        "name those that should with include",
        rule=TempBalance(exclude=("3", "5", "7")),
    )
    balancer = balance(rule=TempBalance(include=("0",), exclude=("3",)))
    assert list(balancer.factors) == ["0", "5", "7"]


def test_device_and_window() -> None:
    with pytest.raises(
        st.SpecError,
        match="device must be auto, cpu or an accelerator that torch has here, not 'gpu'",
    ):
        balance(device="gpu")
    with pytest.raises(
        st.SpecError,
        match="a window of 512 is larger than every layer; the largest that fits any is 64",
    ):
        balance(rule=TempBalance(spec=st.Spec(window=512)))


def test_two_balancers_on_one_optimizer() -> None:
    model = net()
    optimizer = sgd(model)
    first = balance(model, optimizer)
    refused(
        r"the optimizer has a Balancer already: call its remove\(\)",
        model=model,
        optimizer=optimizer,
    )
    first.remove()
    balance(model, optimizer)


def test_groups_added_later_train_at_their_own_rate_with_one_warning() -> None:
    model, more = net(), nn.Linear(4, 4)
    optimizer = sgd(model)
    balancer = balance(model, optimizer, every=2)
    train(model, optimizer, 2)
    rates = []
    optimizer.register_step_pre_hook(
        lambda *_: rates.append(
            {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        )
    )
    optimizer.add_param_group({"params": list(more.parameters()), "lr": 0.3})
    with pytest.warns(
        UserWarning, match="2 parameters came into the optimizer after the Balancer was built"
    ) as told:
        train(model, optimizer, 3, start=2)
    assert len(told) == 1
    assert rates[-1][id(more.weight)] == 0.3
    assert rates[-1][id(model[3].weight)] == 0.1 * balancer.factors["3"]
    assert len(optimizer.param_groups) == 2


def test_a_weight_that_becomes_nan_keeps_its_factor_with_one_warning() -> None:
    model = net()
    optimizer = sgd(model)
    balancer = balance(model, optimizer, every=None)
    balancer.update()
    before = dict(balancer.factors)
    with torch.no_grad():
        model[5].weight[0, 0] = float("nan")
    text = (
        "5 has no alpha at step 0 and keeps its factor: "
        "failed: 1 of 6144 weights are NaN or infinite"
    )
    with pytest.warns(UserWarning, match=text) as told:
        [balancer.update() for _ in range(2)]
    assert len(told) == 1
    assert balancer.factors["5"] == before["5"]
    assert balancer.left_out["5"] == "failed: 1 of 6144 weights are NaN or infinite"
    assert sorted(v for k, v in balancer.factors.items() if k != "5") == [0.5, 1.5], (
        "the others go on"
    )
    assert "5" not in balancer.history[-1].alphas
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(float("nan"))
    with pytest.warns(
        UserWarning, match="not one layer has an alpha at step 0, so that all factors stay"
    ):
        balancer.update()


def test_layers_with_few_eigenvalues_keep_factor_1_and_are_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 8), nn.Linear(8, 64), nn.Linear(64, 20)
    )
    balancer = balance(model, rule=TempBalance(include_first_last=True), every=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        balancer.update()
    assert list(balancer.factors) == ["0", "1", "4"]
    assert balancer.factors["4"] == 1.0
    assert balancer.left_out["2"].startswith("too small: matrices of 8 x 64")
    assert "not comparable" in balancer.left_out["4"]
    assert "at the base value, too small: matrices of 8 x 64" in balancer.summary()
    whole = TempBalance(spec=st.presets.FULL, include_first_last=True)
    balancer = balance(model, rule=whole, every=None)
    balancer.update()
    assert balancer.left_out["4"] == "skipped: 20 eigenvalues, the rule asks for at least 50"


def test_nothing_to_measure_is_said() -> None:
    refused(
        r"no layer takes part in tempbalance: "
        r"0 \(too small: matrices of 8 x 8, a window needs a short side",
        model=nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)]),
    )
    balancer = balance(nn.Sequential(*[nn.Linear(20, 20) for _ in range(4)]), every=None)
    text = (
        "not one layer has an alpha at step 0, so that all factors stay; "
        "1: 20 eigenvalues, the rule asks for at least"
    )
    with pytest.warns(UserWarning, match=text):
        balancer.update()
    assert set(balancer.factors.values()) == {1.0}


def test_the_state_of_another_model() -> None:
    state = balance().state_dict()
    other = nn.Sequential(nn.Linear(16, 64), *[nn.Linear(64, 64) for _ in range(9)])
    balancer = balance(other)
    balancer.update()
    before = balancer.state_dict()
    text = (
        "the state is of another model, or of other layers of it: "
        "it lacks 1 and 4 more; other shapes at 3 and 1 more"
    )
    with pytest.raises(TrainingError, match=text):
        balancer.load_state_dict(state)
    assert balancer.state_dict() == before
    for damaged in (
        {},
        None,
        {"format": "spectail balancer"},
        torch.optim.SGD(other.parameters()).state_dict(),
    ):
        with pytest.raises(
            TrainingError, match=r"expected a state that Balancer.state_dict has given"
        ):
            balancer.load_state_dict(damaged)  # type: ignore[arg-type]


def test_a_state_with_other_settings_is_loaded_with_a_warning() -> None:
    model = net()
    balancer = balance(model, rule="tempbalance:sqrt")
    balancer.update()
    other = balance(model := net(), rule="tempbalance")
    with pytest.warns(UserWarning, match=r"saved with other settings \(map 'sqrt' there\)"):
        other.load_state_dict(balancer.state_dict())
    assert other.factors == balancer.factors
    other.update()
    assert sorted(other.factors.values())[::2] == [0.5, 1.5]


def test_a_model_that_loses_a_layer() -> None:
    model = net()
    balancer = balance(model, every=None)
    model[5] = nn.Identity()
    with pytest.raises(
        TrainingError, match="the model has lost its layer '5' since the Balancer was built"
    ):
        balancer.update()


def test_background_with_several_processes_is_refused() -> None:
    refused("background measuring works in one process", background=True, group=object())


def test_a_history_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text('{"format": "else"}')
    with pytest.raises(
        st.RunError, match=r"history.json is not a history that this version can read"
    ):
        History.load(tmp_path)


def test_building_and_measuring_changes_no_training() -> None:
    model, other = net(), net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    state = copy.deepcopy(torch.get_rng_state())
    balancer = balance(model, optimizer, rule="tempbalance:linear:1.0:1.0", every=2)
    assert torch.equal(state, torch.get_rng_state())
    train(model, optimizer, 5)
    train(other, torch.optim.Adam(other.parameters(), lr=0.01), 5)
    assert same(weights_of(model), weights_of(other))
    assert len(balancer.history) == 2


def test_llr_takes_no_normalisation() -> None:
    with pytest.raises(TrainingError, match="llr only scales up"):
        LLR(normalize=True)
    given = as_rule(LLR(map="linear:1.0:3.0")).map
    assert isinstance(given, st.maps.Linear)
    assert given.high == 3.0
