"""A Balancer with a model on a GPU: factors, optimizers, mixed precision, graphs, background."""

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import spectail as st
from tests.cuda.device import DEVICE, IS_GPU, needs_device, needs_gpu
from tests.training import nets, running
from tests.training.nets import OPTIMIZERS, net, train
from tests.training.wrapped import Case

pytestmark = needs_device
RULES = ["tempbalance", "tempbalance:sqrt", "tb-sigmoid", "llr", "alphadecay"]
ON_GPU: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam capturable": lambda ps: torch.optim.Adam(ps, lr=1e-2, capturable=True),
    "adamw capturable tensor lr": lambda ps: torch.optim.AdamW(
        ps, lr=torch.tensor(1e-2, device=DEVICE), capturable=True, weight_decay=0.1
    ),
    "adamw fused tensor lr here": lambda ps: torch.optim.AdamW(
        ps, lr=torch.tensor(1e-2, device=DEVICE), fused=True
    ),
    "rmsprop capturable": lambda ps: torch.optim.RMSprop(ps, lr=1e-3, capturable=True),
}
"""Settings that only a GPU has."""
EVERY_OPTIMIZER = OPTIMIZERS | (ON_GPU if IS_GPU else {})


@pytest.fixture(autouse=True)
def data_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the helpers of training draw lies on the device."""
    draw = nets.batch
    monkeypatch.setattr(nets, "batch", lambda step: draw(step).to(DEVICE))
    monkeypatch.setattr(running, "net", lambda: net().to(DEVICE))


def sgd(model: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def goal(balancer: st.Balancer) -> dict[str, float]:
    return balancer.history[-1].factors


def measured_on_cpu(model: nn.Module, rule: Any) -> dict[str, float]:
    """The factors that the same weights give on the CPU."""
    moved = copy.deepcopy(model).cpu()
    update = st.Balancer(moved, sgd(moved), rule, every=None).update()
    assert update is not None
    return update.factors


@pytest.mark.parametrize("rule", RULES)
def test_factors_are_those_of_the_cpu(rule: str) -> None:
    model = net().to(DEVICE)
    balancer = st.Balancer(model, sgd(model), rule, every=4)
    train(model, balancer.optimizer, 8)
    balancer.remove()
    assert goal(balancer) == pytest.approx(measured_on_cpu(model, rule), rel=1e-7)
    assert torch.device(balancer.history.run.device).type == torch.device(DEVICE).type


@pytest.mark.parametrize("name", EVERY_OPTIMIZER)
def test_every_optimizer_trains_as_with_groups_made_by_hand(name: str) -> None:
    def make(params: Any) -> Case:
        optimizer = EVERY_OPTIMIZER[name](
            params if name != "muon" else [p for p in params if p.ndim == 2]
        )
        return Case(optimizer, optimizer.param_groups)

    if name == "muon":
        pytest.skip("takes matrices alone, which the helper does not make")
    model, _, balancer, told = running.balanced(make)
    expected, _ = running.with_groups_by_hand(make, told)
    assert len(balancer.history) == running.STEPS // running.EVERY
    for (label, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=label)
    assert balancer.steps == running.STEPS


def test_building_a_balancer_draws_no_random_number() -> None:
    model = net().to(DEVICE)
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if IS_GPU else [])]
    st.Balancer(model, sgd(model), "tempbalance", every=4)
    after = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if IS_GPU else [])]
    assert all(torch.equal(a, b) for a, b in zip(states, after, strict=True))


@needs_gpu
@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_of_gradients_skips_steps(fused: bool) -> None:
    model = net().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=2)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)
    before = [p.detach().clone() for p in model.parameters()]
    for step in range(6):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = nets.loss_of(model, step)
        scaler.scale(loss if step != 3 else loss * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    # A fused optimizer is called for the step that it leaves out.
    assert balancer.steps == (6 if fused else 5)
    assert goal(balancer)


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@needs_gpu
@pytest.mark.parametrize("tensor_rate", [False, True])
def test_a_step_in_a_graph(tensor_rate: bool) -> None:
    """The factors of the capture hold in every replay, and the rate is that of the replay."""
    model = net().to(DEVICE)
    rate: Any = torch.tensor(1e-2, device=DEVICE) if tensor_rate else 1e-2
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, capturable=True, weight_decay=0)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=1)
    x = nets.batch(0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (model(x) - x[:, :4].sin()).square().mean().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    assert (balancer.steps, len(balancer.history)) == (3, 3)
    plain = copy.deepcopy(model)
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.warns(UserWarning, match="a captured step runs no hooks") as told,
        torch.cuda.graph(graph),
    ):
        step()
    assert len([w for w in told if "captured" in str(w.message)]) == 1
    # Nothing was trained while the graph was recorded: no step is counted, nothing measured.
    assert (balancer.steps, len(balancer.history)) == (3, 3)
    assert all(
        torch.equal(a, b) for a, b in zip(weights_of(plain), model.parameters(), strict=True)
    )
    graph.replay()
    torch.cuda.synchronize()
    moved = {
        name: float((p - q).abs().max())
        for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True)
    }
    # Adam moves a weight by about the rate, so steps show the factors.
    factors = balancer.factors
    assert len(set(factors.values())) > 1
    low, high = min(factors, key=factors.__getitem__), max(factors, key=factors.__getitem__)
    assert moved[f"{high}.weight"] / moved[f"{low}.weight"] == pytest.approx(
        factors[high] / factors[low], rel=0.3
    )
    if tensor_rate:
        rate.fill_(0)
        before = weights_of(model)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    # A step outside of the graph is followed again.
    step()
    assert (balancer.steps, len(balancer.history)) == (4, 4)


@needs_gpu
def test_many_passes_in_a_graph_without_a_step() -> None:
    """Gradients are recorded, the step is not: nothing asks the GPU for values meanwhile."""
    model = net().to(DEVICE)
    balancer = st.Balancer(model, sgd(model), "tempbalance", every=1)
    x = nets.batch(0)

    def backward() -> None:
        (model(x) - x[:, :4].sin()).square().mean().backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            backward()
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(2):
            backward()
    graph.replay()
    balancer.optimizer.step()
    assert (balancer.steps, len(balancer.history)) == (1, 1)


@pytest.mark.parametrize("measured_on", [None, "cpu"])
def test_the_background_measures_the_weights_of_its_moment(measured_on: str | None) -> None:
    model = net().to(DEVICE)
    balancer = st.Balancer(
        model, sgd(model), "tempbalance", every=None, background=True, device=measured_on
    )
    streams = [None] if not IS_GPU else [None, torch.cuda.Stream()]
    for stream in streams:
        with torch.cuda.stream(stream):
            with torch.no_grad():
                for p in model.parameters():
                    if p.ndim == 2:
                        q = torch.linalg.svd(torch.randn_like(p), full_matrices=False)
                        p.copy_(q[0] * q[1].pow(2) @ q[2])
            expected = copy.deepcopy(model)
            balancer.update()
            # What training does meanwhile: other weights, and memory that is taken and given back.
            with torch.no_grad():
                for _ in range(20):
                    for p in model.parameters():
                        p.copy_(torch.rand_like(p))
            taken = balancer.update()
        assert taken is not None
        assert taken.factors == pytest.approx(measured_on_cpu(expected, "tempbalance"), rel=1e-7)


@needs_gpu
def test_measuring_waits_for_the_step_before_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(512, 512) for _ in range(6)]).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=1)
    x = torch.randn(4096, 512, device=DEVICE)
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(3):
                optimizer.zero_grad()
                # Work that the step has to wait for.
                y = x
                for _ in range(20):
                    y = torch.nn.functional.layer_norm(model(y), (512,))
                y.square().mean().backward()
                optimizer.step()
                found = goal(balancer)
                assert found == pytest.approx(measured_on_cpu(model, "tempbalance"), rel=1e-7)


def stored(balancer: st.Balancer) -> Any:
    """The state by way of a file."""
    file = io.BytesIO()
    torch.save(balancer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("background", [False, True])
def test_a_state_goes_from_the_gpu_to_the_cpu_and_back(background: bool) -> None:
    model = net().to(DEVICE)
    balancer = st.Balancer(model, sgd(model), "tempbalance", every=3, background=background)
    train(model, balancer.optimizer, 7)
    moved = copy.deepcopy(model).cpu()
    on_cpu = st.Balancer(moved, sgd(moved), "tempbalance", every=3, background=background)
    on_cpu.load_state_dict(stored(balancer))
    again = copy.deepcopy(moved).to(DEVICE)
    back = st.Balancer(again, sgd(again), "tempbalance", every=3, background=background)
    back.load_state_dict(stored(on_cpu))
    assert balancer.factors == on_cpu.factors == back.factors
    assert back.steps == 7
    for one in (balancer, back):
        one.optimizer.state.clear()
        train(one.model, one.optimizer, 5, start=7)
    assert back.factors == pytest.approx(balancer.factors, rel=1e-3)


def test_training_past_the_balancer_is_noticed() -> None:
    model = net().to(DEVICE)
    kept = st.Balancer(model, sgd(model), "tempbalance", every=3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train(model, sgd(model), 20)
    assert kept.steps == 0
    assert any("makes no step" in str(w.message) or "step" in str(w.message) for w in told)


def test_a_balancer_in_bfloat16() -> None:
    model = net().to(DEVICE).bfloat16()
    balancer = st.Balancer(model, sgd(model), "tb-sigmoid", every=2)
    for step in range(4):
        balancer.optimizer.zero_grad()
        x = nets.batch(step).bfloat16()
        model(x).float().square().mean().backward()
        balancer.optimizer.step()
    balancer.remove()
    assert goal(balancer) == pytest.approx(measured_on_cpu(model, "tb-sigmoid"), rel=1e-7)


@needs_gpu
def test_a_compiled_model() -> None:
    model = net().to(DEVICE)
    compiled: Any = torch.compile(model, backend="eager")
    balancer = st.Balancer(compiled, sgd(model), "llr", every=2)
    train(model, balancer.optimizer, 4)
    assert len(balancer.history) == 2
