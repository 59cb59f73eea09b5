"""A Balancer is never silently without effect: an optimizer is followed, refused at the start, or warned about."""

import copy
import io
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_pre_hooks

import spectail as st
from spectail.errors import TrainingError
from tests.training.nets import UNITS, loss_of, net, same, train, weights_of
from tests.training.optimizers import (
    REFUSED,
    SAM,
    STATEFUL,
    WITHOUT_EFFECT,
    WRAPPERS,
    Anew,
    Averaging,
    ByName,
    Case,
    Remembering,
    ScheduleFree,
)

STEPS, EVERY = 9, 3


def by_hand(model):
    """The groups that a Balancer makes of one group, and the layer of each."""
    groups = {unit: [model.get_parameter(name) for name in names] for unit, names in UNITS.items()}
    taken = {id(p) for held in groups.values() for p in held}
    groups = {"rest": [p for p in model.parameters() if id(p) not in taken], **groups}
    return [{"params": held} for held in groups.values()], list(groups)


def run(model, case, steps, *, start=0, before=lambda step: None):
    """Plain steps, with a closure that computes the gradients."""
    for step in range(start, start + steps):

        def closure(step=step):
            model.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        closure()
        before(step)
        case.step(closure)


def balanced(make, rule="tempbalance"):
    """Train with a Balancer; gives the factors and the base value of every step too."""
    model = net()
    case = make(model.parameters())
    if hasattr(case.given, "train"):
        case.given.train()
    balancer = st.Balancer(model, case.given, rule, every=EVERY)
    told = []
    run(model, case, STEPS, before=lambda _: told.append((balancer.factors, value_of(case, balancer))))
    return model, case, balancer, told


def value_of(case, balancer):
    value = case.groups[0][balancer.rule.option]
    return value.clone() if isinstance(value, torch.Tensor) else value


def with_groups_by_hand(make, told, option="lr"):
    """The same training by a user who has made a group per layer and sets its value before every step."""
    model = net()
    groups, names = by_hand(model)
    case = make(groups)
    for group in case.groups:
        if isinstance(group[option], torch.Tensor):
            group[option] = group[option].clone()
    if hasattr(case.given, "train"):
        case.given.train()

    def before(step):
        factors, base = told[step]
        for i, group in enumerate(case.groups):
            factor = factors.get(names[i % len(names)], 1.0)
            value = base if factor == 1 else base * factor
            group[option] = value.clone() if isinstance(value, torch.Tensor) else value

    run(model, case, STEPS, before=before)
    return model, case


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_followed_bit_by_bit(name):
    model, case, balancer, told = balanced(WRAPPERS[name])
    other, _ = with_groups_by_hand(WRAPPERS[name], told)
    assert balancer.steps == STEPS
    assert len(set(told[-1][0].values())) > 1
    assert same(weights_of(model), weights_of(other))
    assert {group["lr"] for group in case.groups} == {told[0][1]}, "the user's groups are as they were"


def test_the_factors_change_what_a_wrapper_does():
    flat, _, _, _ = balanced(WRAPPERS["sam, two calls"], "tempbalance:linear:1.0:1.0")
    model, _, _, _ = balanced(WRAPPERS["sam, two calls"])
    assert not same(weights_of(model), weights_of(flat))


@pytest.mark.parametrize("name", STATEFUL)
def test_state_per_group_is_that_of_groups_made_by_hand(name):
    def make(params):
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


def test_the_users_group_shows_the_state_of_the_base_rate():
    _, case, _, _ = balanced(lambda ps: (lambda made: Case(made, made.param_groups))(ScheduleFree(ps)))
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
def test_a_resumed_run_is_the_same_with_state_per_group(name, through, order):
    def make(params):
        made = SAM(params, torch.optim.SGD, lr=0.05) if name == "sam" else STATEFUL[name](params)
        return Case(made, made.param_groups, "two calls" if name == "sam" else "step")

    whole, _, _, _ = balanced(make)
    model, states = net(), []
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


def test_state_per_group_that_cannot_be_stored_is_told():
    model = net()
    optimizer = Remembering(model.parameters())
    balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 3)
    with pytest.warns(UserWarning, match="the state is stored without 'seen' of the layers' groups, a set"):
        state = balancer.state_dict()
    json.dumps(state)
    assert not told_by(balancer.state_dict)


def test_a_value_that_the_user_sets_counts_for_all_parts():
    model = net()
    optimizer = STATEFUL["travelled"](model.parameters())
    st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 4)
    optimizer.param_groups[0]["travelled"] = 7.0
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.extend(g["travelled"] for g in optimizer.param_groups))
    train(model, optimizer, 1, start=4)
    assert seen == [7.0] * 4


@pytest.mark.skipif(torch.__version__ < "2.6", reason="groups have no names there")
def test_names_of_parameters_are_split_with_them():
    model, other = net(), net()
    optimizer = ByName(model.named_parameters())
    balancer = st.Balancer(model, optimizer, "tempbalance:linear:1.0:1.0", every=2)
    train(model, optimizer, 4)
    train(other, ByName(other.named_parameters()), 4)
    assert balancer.steps == 4
    assert same(weights_of(model), weights_of(other))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_split_is_refused_when_the_balancer_is_built(name):
    make, text = REFUSED[name]
    model = net()
    with pytest.raises(TrainingError, match=text):
        st.Balancer(model, make(model.parameters()), "tempbalance", every=EVERY)


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_does_not_go_by_the_rate_is_told(name):
    model = net()
    with pytest.warns(UserWarning, match="were the same with half the lr: it does not go by the lr of its groups"):
        st.Balancer(model, WITHOUT_EFFECT[name](model.parameters()), "tempbalance", every=EVERY)


@pytest.mark.parametrize("make", list(WRAPPERS.values()), ids=list(WRAPPERS))
def test_a_trial_touches_nothing(make):
    model = net()
    case = make(model.parameters())
    before = weights_of(model), repr(copy.deepcopy(case.groups)), torch.get_rng_state()
    balancer = st.Balancer(model, case.given, "tempbalance", every=None)
    balancer.remove()
    after = weights_of(model), repr(copy.deepcopy(case.groups)), torch.get_rng_state()
    assert same(before[0], after[0])
    assert before[1] == after[1]
    assert torch.equal(before[2], after[2])
    assert all(p.grad is None for p in model.parameters())


def told_by(action):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        action()
    return [str(warning.message) for warning in told]


def test_groups_that_cannot_be_changed_are_told_after_the_first_measurement():
    model = net()
    optimizer = Anew(model.parameters())
    st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 2)
    text = "the optimizer steps with another lr than it was given for 3, 5, 7: the factors have no effect there"
    with pytest.warns(UserWarning, match=text) as told:
        train(model, optimizer, 4, start=2)
    assert len(told) == 1


def test_gradients_that_are_there_already_stay():
    model = net()
    loss_of(model, 0).backward()
    before = [p.grad for p in model.parameters()]
    st.Balancer(model, torch.optim.SGD(model.parameters(), lr=0.1), "tempbalance", every=2)
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), before, strict=True))
    with pytest.raises(TrainingError, match="OneRate cannot be balanced"):
        st.Balancer(model, REFUSED["one rate"][0](model.parameters()), "tempbalance", every=2)


UNUSED = "but not in step() of the SGD that the Balancer is on"


def made_anew(model, optimizer):
    return torch.optim.SGD(model.parameters(), lr=0.1).step


def step_of_its_own(model, optimizer):
    def step():
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(p.grad, alpha=0.1)

    return step


def through_data(model, optimizer):
    def step():
        for p in model.parameters():
            p.data = p.data - 0.1 * p.grad

    return step


def unhooked(model, optimizer):
    return lambda: type(optimizer).step.__wrapped__(optimizer)


@pytest.mark.parametrize("other", [made_anew, step_of_its_own, through_data, unhooked])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_weights_that_change_without_a_step_are_told_once(other, accumulated):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    st.Balancer(model, optimizer, "tempbalance", every=2)
    assert not told_by(lambda: train(model, optimizer, 4))
    step = other(model, optimizer)

    def go():
        for i in range(16):
            model.zero_grad()
            for _ in range(accumulated):
                loss_of(model, i).backward()
            step()

    assert [UNUSED in text for text in told_by(go)] == [True]


@pytest.mark.parametrize("passes", [1, 4, 40])
def test_accumulated_gradients_are_no_matter(passes):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    st.Balancer(model, optimizer, "tempbalance", every=2)

    def go():
        for i in range(3):
            for _ in range(passes):
                loss_of(model, i).backward()
            optimizer.step()
            optimizer.zero_grad()

    assert not told_by(go)


def test_weights_that_sam_moves_and_puts_back_are_no_matter():
    model = net()
    sam = SAM(model.parameters(), lr=0.05)
    balancer = st.Balancer(model, sam, "tempbalance", every=2)

    def go():
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


def test_weights_that_are_loaded_once_are_no_matter():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    st.Balancer(model, optimizer, "tempbalance", every=2)

    def go():
        for i in range(20):
            if i == 3:
                model.load_state_dict(net(1).state_dict())
            loss_of(model, i).backward()

    assert not told_by(go)


def test_a_new_balancer_takes_the_place_of_one_that_nobody_removed():
    model = net()
    st.Balancer(model, torch.optim.SGD(model.parameters(), lr=0.1), "tempbalance", every=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    st.Balancer(model, optimizer, "tempbalance", every=2)
    assert not told_by(lambda: train(model, optimizer, 12))


def test_parameters_that_are_replaced_in_the_groups_are_told():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    st.Balancer(model, optimizer, "tempbalance", every=50)
    group = optimizer.param_groups[0]
    group["params"] = [nn.Parameter(torch.cat([p.detach().flatten() for p in group["params"]]))]
    told = told_by(lambda: train(model, optimizer, 2))
    assert "3 layers are no longer in the optimizer, so that their factors have no effect: 3, 5, 7" in "".join(told)
    assert len(told) == 2


def test_no_measurement_at_all_is_told_at_the_end():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for every, why in ((100, "it measures every 100 steps"), (None, r"update\(\) was never called")):
        balancer = st.Balancer(model, optimizer, "tempbalance", every=every)
        train(model, optimizer, 3)
        with pytest.warns(UserWarning, match=f"nothing was measured in 3 steps, so that every factor was 1: {why}"):
            balancer.remove()


def test_schedulers_in_a_hook_see_the_users_groups():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    rates = []
    optimizer.register_step_post_hook(lambda *_: (scheduler.step(), rates.append(scheduler.get_last_lr())))
    st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 4)
    assert rates == pytest.approx(np.array([[0.1 / 2], [0.1 / 3], [0.1 / 4], [0.1 / 5]]))


@pytest.mark.parametrize("scheduler", ["lambda", "one cycle"])
@pytest.mark.parametrize("first", ["scheduler", "balancer"])
def test_schedulers_on_a_wrapper(first, scheduler):
    kinds = {
        "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1, cycle_momentum=False),
    }
    model = net()
    sam = SAM(model.parameters(), torch.optim.SGD, lr=0.05)
    if first == "scheduler":
        schedule = kinds[scheduler](sam)
    balancer = st.Balancer(model, sam, "tempbalance", every=EVERY)
    if first == "balancer":
        schedule = kinds[scheduler](sam)
    seen = []
    sam.base_optimizer.register_step_pre_hook(lambda *_: seen.append([g["lr"] for g in sam.param_groups]))
    case = Case(sam, sam.param_groups, "two calls")
    for step in range(STEPS):
        factors, base = balancer.factors, sam.param_groups[0]["lr"]
        run(model, case, 1, start=step)
        assert seen[-1] == pytest.approx([base, *(base * factor for factor in factors.values())])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is used to a call of step()
            schedule.step()
    assert len({tuple(rates) for rates in seen}) == STEPS


def test_weight_decay_that_does_not_reach_the_layers_is_told():
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


@pytest.mark.parametrize("built", ["before prepare", "after prepare"])
def test_an_optimizer_that_accelerate_prepares(built):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    if built == "before prepare":
        balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    model, optimizer = accelerator.prepare(model, optimizer)
    if built == "after prepare":
        balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    for step in range(8):
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, step))
            optimizer.step()
            optimizer.zero_grad()
    assert balancer.steps == 4, "steps that only accumulate do not count"

    other = net()
    plain = torch.optim.AdamW(other.parameters(), lr=0.01)
    same_rule = st.Balancer(other, plain, "tempbalance", every=2)
    for step in range(0, 8, 2):
        plain.zero_grad()
        for half in (step, step + 1):
            (loss_of(other, half) / 2).backward()
        plain.step()
    assert same_rule.factors == balancer.factors
    assert same(weights_of(model), weights_of(other))


def test_a_balancer_is_copied_and_stored_with_nothing():
    model = net()
    given = Averaging(torch.optim.SGD(model.parameters(), lr=0.1))
    balancer = st.Balancer(model, given, "tempbalance", every=2)
    twin, other = copy.deepcopy((given, model))
    assert twin.step.__self__ is twin
    file = io.BytesIO()
    torch.save(model, file)
    run(other, Case(twin, twin.param_groups), 3)
    assert balancer.steps == 0
    balancer.remove()
    assert "step" not in vars(given)
    run(model, Case(given, given.param_groups), 3)
    assert same(weights_of(model), weights_of(other))


def test_after_remove_nothing_is_left():
    model = net()
    sam = SAM(model.parameters(), lr=0.05)
    of_others = set(_global_optimizer_pre_hooks)
    balancer = st.Balancer(model, sam, "tempbalance", every=2)
    run(model, Case(sam, sam.param_groups, "closure"), 2)
    balancer.remove()
    for optimizer in (sam, sam.base_optimizer):
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        assert not optimizer._optimizer_state_dict_pre_hooks
    assert set(_global_optimizer_pre_hooks) <= of_others
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    st.Balancer(model, sam.base_optimizer, "tempbalance", every=2)


def test_a_balancer_on_the_inner_optimizer_is_seen_from_outside():
    model = net()
    sam = SAM(model.parameters(), lr=0.05)
    st.Balancer(model, sam.base_optimizer, "tempbalance", every=2)
    with pytest.raises(TrainingError, match="the optimizer has a Balancer already"):
        st.Balancer(model, sam, "tempbalance", every=2)


@pytest.mark.parametrize("name", ["sam, closure", "sam, copies, closure", "decays itself", "schedule-free around"])
def test_a_wrapper_whose_step_raised_goes_on(name):
    model = net()
    case = WRAPPERS[name](model.parameters())
    balancer = st.Balancer(model, case.given, "tempbalance", every=2)
    run(model, case, 2)
    inner = next(iter(balancer._steps.optimizers.innermost))
    handle = inner.register_step_pre_hook(out_of_memory)
    before = [{**group} for group in case.groups]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            run(model, case, 1, start=2)
    handle.remove()
    run(model, case, 2, start=2)
    assert balancer.steps == 4
    assert [group["lr"] for group in case.groups] == [group["lr"] for group in before]
    assert len(case.groups) == 1


def out_of_memory(*_):
    raise RuntimeError("out of memory")
