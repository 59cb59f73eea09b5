"""Optimizers around others are followed, whatever calls them, and left as they were."""

import copy
import io
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import spectail as st
from spectail.errors import TrainingError
from spectail.training import step_hooks
from tests.training.nets import loss_of, net, same, train, weights_of
from tests.training.running import EVERY, STEPS, balanced, run, with_groups_by_hand
from tests.training.wrapped import SAM, WRAPPERS, Averaging, Case, Lookahead


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_followed_bit_by_bit(name: str) -> None:
    model, case, balancer, told = balanced(WRAPPERS[name])
    other, _ = with_groups_by_hand(WRAPPERS[name], told)
    assert balancer.steps == STEPS
    assert len(set(told[-1][0].values())) > 1
    assert same(weights_of(model), weights_of(other))
    assert {group["lr"] for group in case.groups} == {told[0][1]}, (
        "the user's groups are as they were"
    )


def test_the_factors_change_what_a_wrapper_does() -> None:
    flat, _, _, _ = balanced(WRAPPERS["sam, two calls"], "tempbalance:linear:1.0:1.0")
    model, _, _, _ = balanced(WRAPPERS["sam, two calls"])
    assert not same(weights_of(model), weights_of(flat))


@pytest.mark.parametrize("make", list(WRAPPERS.values()), ids=list(WRAPPERS))
def test_a_trial_touches_nothing(make: Callable[..., Any]) -> None:
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


def test_schedulers_in_a_hook_see_the_users_groups() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    rates: list[Any] = []

    def after(*_: Any) -> None:
        scheduler.step()
        rates.append(scheduler.get_last_lr())

    optimizer.register_step_post_hook(after)
    st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 4)
    assert rates == pytest.approx(np.array([[0.1 / 2], [0.1 / 3], [0.1 / 4], [0.1 / 5]]))


@pytest.mark.parametrize("scheduler", ["lambda", "one cycle"])
@pytest.mark.parametrize("first", ["scheduler", "balancer"])
def test_schedulers_on_a_wrapper(first: str, scheduler: str) -> None:
    kinds: dict[str, Any] = {
        "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
        "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, 0.1, total_steps=STEPS + 1, cycle_momentum=False
        ),
    }
    model = net()
    sam = SAM(model.parameters(), torch.optim.SGD, lr=0.05)
    if first == "scheduler":
        schedule = kinds[scheduler](sam)
    balancer = st.Balancer(model, sam, "tempbalance", every=EVERY)
    if first == "balancer":
        schedule = kinds[scheduler](sam)
    seen = []
    sam.base_optimizer.register_step_pre_hook(
        lambda *_: seen.append([g["lr"] for g in sam.param_groups])
    )
    case = Case(sam, sam.param_groups, "two calls")
    for step in range(STEPS):
        factors, base = balancer.factors, sam.param_groups[0]["lr"]
        run(model, case, 1, start=step)
        assert seen[-1] == pytest.approx([base, *(base * factor for factor in factors.values())])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is used to a call of step()
            schedule.step()
    assert len({tuple(rates) for rates in seen}) == STEPS


@pytest.mark.parametrize("first", ["scheduler", "balancer"])
def test_schedulers_on_a_wrapper_that_runs_no_hooks(first: str) -> None:
    def schedule_of(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    model, other = net(), net()
    given, plain = (Lookahead(torch.optim.SGD(m.parameters(), lr=0.1)) for m in (model, other))
    if first == "scheduler":
        schedule = schedule_of(given)
    balancer = st.Balancer(model, given, "tempbalance:linear:1.0:1.0", every=EVERY)
    if first == "balancer":
        schedule = schedule_of(given)
    plain_schedule = schedule_of(plain)
    for step in range(6):
        if step == 4:
            balancer.remove()
        run(model, Case(given, given.param_groups), 1, start=step)
        run(other, Case(plain, plain.param_groups), 1, start=step)
        schedule.step()
        plain_schedule.step()
    assert balancer.steps == 4
    assert given.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
    assert same(weights_of(model), weights_of(other))


@pytest.mark.parametrize("built", ["before prepare", "after prepare"])
def test_an_optimizer_that_accelerate_prepares(built: str) -> None:
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


def test_a_balancer_is_copied_and_stored_with_nothing() -> None:
    model = net()
    given: Any = Averaging(torch.optim.SGD(model.parameters(), lr=0.1))
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


def test_after_remove_nothing_is_left() -> None:
    model = net()
    sam = SAM(model.parameters(), lr=0.05)
    of_others = list(step_hooks._LOOKS)
    balancer = st.Balancer(model, sam, "tempbalance", every=2)
    run(model, Case(sam, sam.param_groups, "closure"), 2)
    balancer.remove()
    for optimizer in (sam, sam.base_optimizer):
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        assert not optimizer._optimizer_state_dict_pre_hooks
    assert of_others == step_hooks._LOOKS
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    st.Balancer(model, sam.base_optimizer, "tempbalance", every=2)


def test_a_balancer_on_the_inner_optimizer_is_seen_from_outside() -> None:
    model = net()
    sam = SAM(model.parameters(), lr=0.05)
    st.Balancer(model, sam.base_optimizer, "tempbalance", every=2)
    with pytest.raises(TrainingError, match="the optimizer has a Balancer already"):
        st.Balancer(model, sam, "tempbalance", every=2)


@pytest.mark.parametrize(
    "name", ["sam, closure", "sam, copies, closure", "decays itself", "schedule-free around"]
)
def test_a_wrapper_whose_step_raised_goes_on(name: str) -> None:
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


def out_of_memory(*_: Any) -> None:
    raise RuntimeError("out of memory")


def test_steps_of_other_threads_are_not_disturbed() -> None:
    def train_alone(seed: Any, done: Any) -> None:
        model = net(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            balancer = st.Balancer(model, optimizer, "tempbalance", every=1)
            train(model, optimizer, 5)
            balancer.remove()
        done.append(balancer.steps)

    done: list[Any] = []
    threads = [threading.Thread(target=train_alone, args=(seed, done)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [5] * 4


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_compiled_step_of_another_optimizer_goes_on() -> None:
    model, other = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    st.Balancer(model, optimizer, "tempbalance", every=2)
    another = torch.optim.SGD(other.parameters(), lr=0.1)
    step = torch.compile(lambda: another.step(), backend="eager")
    for i in range(6):
        train(model, optimizer, 1, start=i)
        other.zero_grad()
        loss_of(other, i).backward()
        step()
    torch._dynamo.reset()
    plain = net()
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), 6)
    assert same(weights_of(other), weights_of(plain))
