"""A Balancer does bit by bit what groups that are split for good do, for
every optimizer and scheduler.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import lr_scheduler

import spectail as st
from tests.training.nets import (
    OPTIMIZERS,
    UNITS,
    Lion,
    loss_of,
    matrices,
    net,
    same,
    train,
    weights_of,
)

STEPS, EVERY = 9, 3


def held(name: str, model: torch.nn.Sequential) -> list[torch.nn.Parameter]:
    return matrices(model) if name == "muon" else list(model.parameters())


def split_for_good(
    name: str, model: torch.nn.Sequential
) -> tuple[torch.optim.Optimizer, list[str]]:
    """The optimizer with one group per layer and one for all others, and
    which layer each group is of.
    """
    wanted = {id(p) for p in held(name, model)}
    groups = {unit: [model.get_parameter(n) for n in names] for unit, names in UNITS.items()}
    taken = {id(p) for ps in groups.values() for p in ps}
    groups["rest"] = [p for p in model.parameters() if id(p) not in taken]
    groups = {unit: [p for p in ps if id(p) in wanted] for unit, ps in groups.items()}
    optimizer = OPTIMIZERS[name]([{"params": ps} for ps in groups.values()])
    for group in optimizer.param_groups:
        if isinstance(group.get("lr"), torch.Tensor):
            group["lr"] = group["lr"].clone()
    return optimizer, list(groups)


def scaled(base: float | torch.Tensor, factor: float) -> float | torch.Tensor:
    return base if factor == 1 else base * factor


def balanced(
    name: str, rule: str
) -> tuple[torch.nn.Sequential, torch.optim.Optimizer, st.Balancer, list[Any]]:
    """Train with a Balancer: the weights, and the factors and base values of every step."""
    model = net()
    optimizer = OPTIMIZERS[name](held(name, model))
    balancer = st.Balancer(model, optimizer, rule, every=EVERY)
    told = []
    option = balancer.rule.option

    def before(step: int) -> None:
        base = optimizer.param_groups[0][option]
        told.append(
            (dict(balancer.factors), base.clone() if isinstance(base, torch.Tensor) else base)
        )

    train(model, optimizer, STEPS, before=before)
    return model, optimizer, balancer, told


@pytest.mark.parametrize("rule", ["tempbalance", "alphadecay"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_a_static_split_bit_by_bit(name: str, rule: str) -> None:
    if rule == "alphadecay" and name == "own":
        pytest.skip("it has no weight decay")
    model, optimizer, balancer, told = balanced(name, rule)
    assert len(optimizer.param_groups) == 1
    assert any(factor not in (1.0,) for factor in told[-1][0].values())

    other = net()
    static, names = split_for_good(name, other)
    option = balancer.rule.option

    def before(step: int) -> None:
        factors, base = told[step]
        for unit, group in zip(names, static.param_groups, strict=True):
            group[option] = scaled(base, factors.get(unit, 1.0))

    train(other, static, STEPS, before=before)
    assert same(weights_of(model), weights_of(other))
    assert not same(weights_of(model), weights_of(net()))


def test_tensor_rates_keep_their_memory() -> None:
    model = net()
    rate = torch.tensor(1e-2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=1)
    seen = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append([id(g["lr"]) for g in optimizer.param_groups])
    )
    train(model, optimizer, 3, after=lambda step: rate.mul_(0.5))
    assert seen[0] == seen[1] == seen[2]
    assert len(set(seen[0])) == len(seen[0]) == len(balancer.factors) + 1
    assert optimizer.param_groups[0]["lr"] is rate


def test_what_an_optimizer_counts_in_its_groups_is_kept() -> None:
    _, optimizer, _, _ = balanced("own", "tempbalance")
    assert optimizer.param_groups[0]["counted"] == STEPS


SCHEDULERS: dict[str, Any] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "warm-up": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, step_size_up=2, cycle_momentum=False),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "multiplied": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.StepLR(o, 2, 0.5), lr_scheduler.PolynomialLR(o, STEPS)], o
    ),
    "averaging": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=4),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5, threshold=0.9),
}


@pytest.mark.parametrize("first", ["scheduler first", "balancer first"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_see_and_set_the_base_rate(name: str, first: str) -> None:
    def run(balance: bool) -> tuple[list[Any], list[list[Any]], st.Balancer | None]:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = (
            SCHEDULERS[name](optimizer) if first == "scheduler first" or not balance else None
        )
        balancer = st.Balancer(model, optimizer, "tempbalance", every=EVERY) if balance else None
        scheduler = scheduler or SCHEDULERS[name](optimizer)
        rates, inside = [], []
        if balance:
            optimizer.register_step_pre_hook(
                lambda *_: inside.append(
                    [(len(g["params"]), g["lr"]) for g in optimizer.param_groups]
                )
            )

        def after(step: int) -> None:
            plateau: Any = [1.0] if name == "plateau" else []
            scheduler.step(*plateau)
            rates.append(scheduler.get_last_lr())

        train(model, optimizer, STEPS, after=after)
        return rates, inside, balancer

    plain, _, _ = run(False)
    rates, inside, balancer = run(True)
    assert rates == plain
    lowest = min(rate for _, rate in inside[-1])
    assert lowest == pytest.approx(rates[-2][0] * 0.5), (
        "the factor is taken of the base rate of the step"
    )
    assert balancer is not None
    assert len(balancer.history) == STEPS // EVERY


def test_clipping_and_a_scaler_work_unchanged() -> None:
    def run(balance: bool) -> tuple[torch.nn.Sequential, st.Balancer | None]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        balancer = (
            st.Balancer(model, optimizer, "tempbalance:linear:1.0:1.0", every=2)
            if balance
            else None
        )
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        for step in range(6):
            optimizer.zero_grad()
            loss = loss_of(model, step) * (float("inf") if step == 3 else 1.0)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        return model, balancer

    model, balancer = run(True)
    other, _ = run(False)
    assert same(weights_of(model), weights_of(other))
    assert balancer is not None
    assert balancer.steps == 5, "a step that the scaler skips does not count"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("name", "tolerance"), [("sgd", 0.0), ("adamw tensor lr", 1e-4)])
def test_a_compiled_step_is_the_same(name: str, tolerance: float) -> None:
    def run(compiled: bool) -> tuple[list[torch.Tensor], dict[str, float], torch.optim.Optimizer]:
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
        step = (
            torch.compile(lambda: optimizer.step(), backend="eager") if compiled else optimizer.step
        )
        for i in range(3):
            optimizer.zero_grad()
            loss_of(model, i).backward()
            step()
        return weights_of(model), balancer.factors, optimizer

    (eager, factors, _), (compiled, same_factors, optimizer) = run(False), run(True)
    torch._dynamo.reset()
    assert same_factors == pytest.approx(factors, rel=1e-3)
    assert max(factors.values()) == 1.5
    assert len(optimizer.param_groups) == 1
    for a, b in zip(eager, compiled, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=tolerance)


def test_state_dicts_of_the_optimizer_load_with_and_without_a_balancer() -> None:
    model, optimizer, balancer, _ = balanced("adamw", "tempbalance")
    saved = copy.deepcopy(optimizer.state_dict())
    assert len(saved["param_groups"]) == 1
    plain = torch.optim.AdamW(net().parameters(), lr=1e-2)
    plain.load_state_dict(copy.deepcopy(saved))
    optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    before = weights_of(model)
    rates = []
    optimizer.register_step_pre_hook(
        lambda *_: rates.append([g["lr"] for g in optimizer.param_groups])
    )
    train(model, optimizer, 1, start=STEPS)
    assert (
        rates[0] == [1e-2 * f for f in balancer.factors.values()] + [1e-2] or len(set(rates[0])) > 2
    )
    assert not same(before, weights_of(model))


class Breaking(torch.optim.SGD):
    """It runs out of memory when told to."""

    breaks = False

    def step(self, closure: Any = None) -> Any:
        if self.breaks:
            raise RuntimeError("out of memory")
        result: Any = super().step(closure)
        return result


def test_a_step_that_raises_leaves_the_groups_whole() -> None:
    model = net()
    optimizer = Breaking(model.parameters(), lr=0.1)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=1)
    train(model, optimizer, 2)
    base = optimizer.param_groups[0]
    optimizer.breaks = True
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step()
        assert len(optimizer.param_groups) == 1
        assert optimizer.param_groups[0] is base
    optimizer.breaks = False
    train(model, optimizer, 1, start=2)
    assert balancer.steps == 3


RAISING: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "in a hook before the step": lambda o: o.register_step_pre_hook(_raise),
    "in a hook after the step": lambda o: o.register_step_post_hook(_raise),
}


def _raise(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("scheduler_first", [True, False])
@pytest.mark.parametrize("where", [*RAISING, "in the step", "in the closure"])
def test_schedulers_and_new_groups_between_a_failed_step_and_the_next_count(
    where: str, scheduler_first: bool
) -> None:
    model, extra = net(), torch.nn.Parameter(torch.ones(3))
    optimizer = Breaking(model.parameters(), lr=0.1)
    make = partial(lr_scheduler.StepLR, optimizer, 1, gamma=0.5)
    scheduler = make() if scheduler_first else None
    balancer = st.Balancer(model, optimizer, "tempbalance", every=1)
    scheduler = scheduler or make()
    train(model, optimizer, 2)
    assert len(set(balancer.factors.values())) > 1
    optimizer.breaks = where == "in the step"
    handle = RAISING[where](optimizer) if where in RAISING else None
    with pytest.raises((RuntimeError, KeyboardInterrupt)):
        optimizer.step(_raise if where == "in the closure" else None)
    scheduler.step()
    optimizer.add_param_group({"params": [extra], "lr": 7.0})
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 7.0]
    if handle:
        handle.remove()
    optimizer.breaks = False
    with pytest.warns(UserWarning, match="1 parameters came into the optimizer"):
        train(model, optimizer, 1, start=2, before=lambda _: setattr(extra, "grad", torch.ones(3)))
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 7.0]
    assert not torch.equal(extra, torch.ones(3)), "the new group takes part"


@pytest.mark.parametrize("given", ["by place", "by name"])
def test_a_closure_sees_the_base_groups(given: str) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=1)
    seen: list[list[float]] = []
    fails: list[bool] = []

    def closure() -> torch.Tensor:
        seen.append([group["lr"] for group in optimizer.param_groups])
        if fails:
            raise RuntimeError("bad batch")
        optimizer.zero_grad()
        loss = loss_of(model, len(seen))
        loss.backward()
        return loss

    def step() -> torch.Tensor:
        result: torch.Tensor = (
            optimizer.step(closure) if given == "by place" else optimizer.step(closure=closure)
        )
        return result

    assert step() > 0
    before = weights_of(model)
    step()
    factor = balancer.history[0].factors["3"]
    moved = before[4] - model[3].weight.detach()
    assert torch.allclose(moved, 0.1 * factor * model[3].weight.grad, atol=1e-6)
    fails.append(True)
    with pytest.raises(RuntimeError, match="bad batch"):
        step()
    assert seen == [[0.1]] * 3
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_steps_that_only_initialise_the_optimizer_do_not_count(
    kind: Any,
) -> None:
    model = net()
    optimizer = kind(model.parameters(), lr=0.1)
    warm_up = lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 2))
    balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    get_optimizer_state_dict(model, optimizer)
    assert balancer.steps == 0
    train(model, optimizer, 1, after=lambda _: warm_up.step())
    assert balancer.steps == 1, "a step of a warm-up that begins at 0 counts"
    optimizer.zero_grad()
    get_optimizer_state_dict(model, optimizer)
    assert balancer.steps == 1


def test_remove_leaves_a_plain_optimizer() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=1)
    balancer.update()
    balancer.remove()
    other = net()
    train(model, optimizer, 3)
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), 3)
    assert same(weights_of(model), weights_of(other))
    assert len(balancer.history) == 1


class Late(torch.optim.Optimizer):
    """It sets its rate by itself, but not in its first steps."""

    def __init__(self, params: Iterator[Any], lr: float | torch.Tensor) -> None:
        super().__init__(params, {"lr": lr, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad * group["lr"])
            group["k"] += 1
            if group["k"] > 7:
                group["lr"] = group["lr"] * 0 + 0.01


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_an_optimizer_that_sets_the_rate_itself_is_an_error(rate: float | torch.Tensor) -> None:
    model = net()
    optimizer = Late(model.parameters(), rate)
    st.Balancer(model, optimizer, "tempbalance", every=5)
    train(model, optimizer, 7)
    with pytest.raises(
        st.SpectailError, match=r"Late writes 'lr' into its groups during step\(\), whatever factor"
    ):
        train(model, optimizer, 1)
    assert len(optimizer.param_groups) == 1


def test_a_step_that_calls_its_parents_step_counts_once() -> None:
    class Louder(Lion):
        def step(self, closure: Any = None) -> Any:
            super().step()

    Lion(net().parameters())
    model, other = net(), net()
    optimizer = Louder(model.parameters())
    balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    train(model, optimizer, 4)
    plain = Lion(other.parameters())
    st.Balancer(other, plain, "tempbalance", every=2)
    train(other, plain, 4)
    assert balancer.steps == 4
    assert same(weights_of(model), weights_of(other))
