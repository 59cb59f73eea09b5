"""Real optimizer packages, where they are installed: the training of groups
that are made by hand, or refused.
"""

import warnings
from typing import Any

import pytest
import torch

import spectail as st
from spectail.errors import TrainingError
from tests.training.nets import loss_of, net, same, train, weights_of
from tests.training.running import STEPS, balanced, with_groups_by_hand
from tests.training.wrapped import Case

# Two of them give old arguments to torch, or print when they are made.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def compare(make: Any, rule: str = "tempbalance", option: str = "lr") -> Any:
    """Train balanced and with groups made by hand; averaged weights too where there are any."""
    model, case, balancer, told = balanced(make, rule)
    other, hand = with_groups_by_hand(make, told, option)
    assert balancer.steps == STEPS
    assert len(set(told[-1][0].values())) > 1
    assert same(weights_of(model), weights_of(other))
    if hasattr(case.given, "eval"):
        case.given.eval()
        hand.given.eval()
        assert same(weights_of(model), weights_of(other))
    return model, balancer


def plain(made: Any) -> Any:
    return Case(made, made.param_groups)


@pytest.mark.parametrize("rule", ["tempbalance", "alphadecay"])
@pytest.mark.parametrize("kind", ["SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"])
def test_schedule_free(kind: str, rule: str) -> None:
    package = pytest.importorskip("schedulefree")

    def make(params: Any) -> Any:
        return plain(getattr(package, kind)(params, lr=0.02, weight_decay=0.1))

    compare(make, rule, "lr" if rule == "tempbalance" else "weight_decay")


def test_schedule_free_around_another_optimizer() -> None:
    package = pytest.importorskip("schedulefree")

    def make(params: Any) -> Any:
        base = torch.optim.SGD(params, lr=0.05)
        return Case(
            package.ScheduleFreeWrapper(base, momentum=0.9, weight_decay_at_y=0.1),
            base.param_groups,
        )

    compare(make)


@pytest.mark.parametrize("package", ["schedulefree", "pytorch_optimizer"])
def test_schedule_free_is_resumed_exactly(package: str) -> None:
    module = pytest.importorskip(package)
    kind = getattr(
        module, "AdamWScheduleFree" if package == "schedulefree" else "ScheduleFreeAdamW"
    )

    def parts(model: Any) -> Any:
        optimizer = kind(model.parameters(), lr=0.02, warmup_steps=2)
        return optimizer, st.Balancer(model, optimizer, "tempbalance", every=3)

    whole = net()
    optimizer, _ = parts(whole)
    optimizer.train()
    train(whole, optimizer, STEPS)
    model = net()
    optimizer, balancer = parts(model)
    optimizer.train()
    train(model, optimizer, 5)
    again = net(1)
    following, after = parts(again)
    again.load_state_dict(model.state_dict())
    following.load_state_dict(optimizer.state_dict())
    after.load_state_dict(balancer.state_dict())
    train(again, following, STEPS - 5, start=5)
    assert same(weights_of(whole), weights_of(again))


RATE_FREE = [
    ("prodigyopt", "Prodigy"),
    *[("dadaptation", f"DAdapt{n}") for n in ("SGD", "Adam", "Lion", "Adan")],
]
FIRST_DECAY = ("DAdaptSGD",)
"""It takes the weight decay of the first group for all."""


@pytest.mark.parametrize(("package", "kind"), RATE_FREE)
def test_what_estimates_one_rate_for_all_is_refused_and_its_decay_balanced(
    package: str, kind: str
) -> None:
    module = pytest.importorskip(package)

    def make(params: Any) -> Any:
        return plain(getattr(module, kind)(params, lr=1.0, weight_decay=0.1))

    def balance(rule: Any) -> Any:
        model = net()
        return st.Balancer(model, make(model.parameters()).given, rule, every=2)

    with pytest.raises(
        TrainingError,
        match=f"{kind} cannot be balanced by 'lr': .*(Setting different lr|for all of)",
    ):
        balance("tempbalance")
    if kind in FIRST_DECAY:
        with pytest.raises(
            TrainingError, match="it takes the weight_decay of one group for all of them"
        ):
            balance("alphadecay")
    else:
        compare(make, "alphadecay", "weight_decay")


def pytorch_optimizer() -> Any:
    return pytest.importorskip("pytorch_optimizer")


def closures(made: Any, groups: Any = None) -> Any:
    return Case(made, groups or made.param_groups, "closure")


OF_PYTORCH_OPTIMIZER: dict[str, Any] = {
    "SAM": lambda o, ps: closures(o.SAM(ps, torch.optim.SGD, lr=0.05)),
    "adaptive SAM": lambda o, ps: closures(o.SAM(ps, torch.optim.AdamW, adaptive=True, lr=0.01)),
    "SAM in two calls": lambda o, ps: Case(
        (s := o.SAM(ps, torch.optim.SGD, lr=0.05)), s.param_groups, "two calls"
    ),
    "LookSAM": lambda o, ps: closures(o.LookSAM(ps, torch.optim.SGD, k=2, lr=0.05)),
    "FriendlySAM": lambda o, ps: closures(o.FriendlySAM(ps, torch.optim.SGD, lr=0.05)),
    "Lookahead": lambda o, ps: plain(o.Lookahead(torch.optim.SGD(ps, lr=0.1), k=2)),
    "TRAC": lambda o, ps: plain(o.TRAC(torch.optim.SGD(ps, lr=0.1))),
    "OrthoGrad": lambda o, ps: plain(o.OrthoGrad(torch.optim.SGD(ps, lr=0.1))),
    "ScheduleFreeWrapper": lambda o, ps: plain(
        o.ScheduleFreeWrapper(torch.optim.RMSprop(ps, lr=0.01), weight_decay=0.1)
    ),
    "ScheduleFreeSGD": lambda o, ps: plain(o.ScheduleFreeSGD(ps, lr=0.1, warmup_steps=2)),
    "ScheduleFreeAdamW": lambda o, ps: plain(o.ScheduleFreeAdamW(ps, lr=0.01)),
    "ScheduleFreeRAdam": lambda o, ps: plain(o.ScheduleFreeRAdam(ps, lr=0.01)),
    "Lion": lambda o, ps: plain(o.Lion(ps, lr=0.001)),
    "LAMB": lambda o, ps: plain(o.Lamb(ps, lr=0.01)),
    "Shampoo": lambda o, ps: plain(o.Shampoo(ps, lr=0.01)),
    "SOAP": lambda o, ps: plain(o.SOAP(ps, lr=0.01)),
    "Adan": lambda o, ps: plain(o.Adan(ps, lr=0.01)),
}


@pytest.mark.filterwarnings("ignore:Balancer. trial steps")
@pytest.mark.parametrize("name", OF_PYTORCH_OPTIMIZER)
def test_wrappers_and_optimizers_of_pytorch_optimizer(name: str) -> None:
    package = pytorch_optimizer()
    model, _, balancer, told = balanced(lambda ps: OF_PYTORCH_OPTIMIZER[name](package, ps))
    other, _ = with_groups_by_hand(lambda ps: OF_PYTORCH_OPTIMIZER[name](package, ps), told)
    assert balancer.steps == STEPS
    # The norm of all gradients is rounded in another way in another order of the groups.
    for a, b in zip(weights_of(model), weights_of(other), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    flat, _, _, _ = balanced(
        lambda ps: OF_PYTORCH_OPTIMIZER[name](package, ps), "tempbalance:linear:1.0:1.0"
    )
    assert not same(weights_of(model), weights_of(flat))


@pytest.mark.parametrize("name", ["Prodigy", "DAdaptAdam", "DAdaptSGD"])
def test_one_rate_taken_for_all_is_refused(name: str) -> None:
    model = net()
    optimizer = getattr(pytorch_optimizer(), name)(model.parameters(), lr=1.0)
    with pytest.raises(
        TrainingError,
        match=f"{name} cannot be balanced by 'lr': it takes the lr of one group for all",
    ):
        st.Balancer(model, optimizer, "tempbalance", every=2)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_every_optimizer_of_pytorch_optimizer_is_balanced_or_refused(option: str) -> None:
    package = pytorch_optimizer()
    rule = {"lr": "tempbalance", "weight_decay": "alphadecay"}[option]
    balanced_ones = []
    for name in package.get_supported_optimizers():
        options = {"lr": 1e-3} | ({"weight_decay": 1e-2} if option == "weight_decay" else {})
        model = net()
        try:
            optimizer = package.load_optimizer(name)(model.parameters(), **options)
            steps(model, optimizer, 1)
        except Exception:  # noqa: BLE001 - it needs more than parameters, or a graph of the gradients
            continue
        model = net()
        optimizer = package.load_optimizer(name)(model.parameters(), **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                balancer = st.Balancer(model, optimizer, rule, every=2)
            except TrainingError:
                continue
        steps(model, optimizer, 5)
        assert balancer.steps == 5, name
        balanced_ones.append(name)
    assert len(balanced_ones) > 80


def steps(model: Any, optimizer: Any, count: Any) -> None:
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in range(count):

        def closure(step: Any = step) -> Any:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        closure()
        optimizer.step(closure)
