"""Two processes: DDP and FSDP2 give the factors and weights of one process, the same on all."""

import functools
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import spectail as st
from spectail.training import measuring
from spectail.training.huggingface import BalancerCallback
from tests.training.nets import net, train, weights_of
from tests.training.test_huggingface import trainer

STEPS, EVERY = 5, 2
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def optimizer_of(model: torch.nn.Sequential) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def wrapped(how: Any) -> Any:
    model = net()
    if how == "ddp":
        return DistributedDataParallel(model)
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer)
    return fully_shard(model)


def resumed(how: Any, stop: int = 3) -> Any:
    """The same run, stopped in the middle and continued from its state dicts."""
    model = wrapped(how)
    optimizer = optimizer_of(model)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=EVERY)
    train(model, optimizer, stop)
    again = wrapped(how)
    following = optimizer_of(again)
    after = st.Balancer(again, following, "tempbalance", every=EVERY)
    again.load_state_dict(model.state_dict())
    following.load_state_dict(optimizer.state_dict())
    after.load_state_dict(balancer.state_dict())
    train(again, following, STEPS - stop, start=stop)
    return again, after


def full(tensor: Any) -> Any:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def remember_what_is_measured(names: list[str]) -> None:
    """Append the name of every layer that this process measures."""
    module: Any = measuring
    inner = module.measure_layer

    def measure_layer(layer: Any, plan: Any) -> Any:
        names.append(layer.name)
        return inner(layer, plan)

    module.measure_layer = measure_layer


def meet(rank: int, folder: Path) -> None:
    """Connect the two processes; by a file, since a port may be taken before they listen on it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)


def work(rank: int, how: str, folder: Path) -> None:
    meet(rank, folder)
    try:
        measured: list[str] = []
        remember_what_is_measured(measured)
        model = wrapped(how)
        optimizer = optimizer_of(model)
        logged: list[int] = []
        balancer = st.Balancer(
            model,
            optimizer,
            "tempbalance",
            every=EVERY,
            log=lambda values, step: logged.append(step),
        )
        train(model, optimizer, STEPS)
        state, own = balancer.state_dict(), list(measured)
        again, other = resumed(how)
        found = {
            "factors": balancer.factors,
            "resumed factors": other.factors,
            "resumed state": other.state_dict() == state,
            "resumed weights": [full(p.detach()).clone() for p in again.parameters()],
            "left_out": balancer.left_out,
            "alphas": [dict(update.alphas) for update in balancer.history],
            "weights": [full(p.detach()).clone() for p in model.parameters()],
            "measured": own,
            "logged": logged,
        }
        torch.save(found, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def work_with_a_trainer(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    measured: list[str] = []
    remember_what_is_measured(measured)
    callback = BalancerCallback("tempbalance", every=2)
    run = trainer(folder, callback, ddp_backend="gloo", max_steps=4)
    run.train()
    assert callback.balancer is not None
    torch.save({"factors": callback.balancer.factors, "measured": measured}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@functools.cache
def alone() -> tuple[st.Balancer, list[torch.Tensor]]:
    model = net()
    optimizer = optimizer_of(model)
    balancer = st.Balancer(model, optimizer, "tempbalance", every=EVERY)
    train(model, optimizer, STEPS)
    return balancer, weights_of(model)


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_do_what_one_does(how: str, tmp_path: Path) -> None:
    spawn(work, (how, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    balancer, weights = alone()
    assert first["factors"] == second["factors"] == first["resumed factors"]
    for found in (first, second):
        assert found["resumed state"]
        assert all(map(torch.equal, found["weights"], found["resumed weights"])), (
            "a resumed run is the same run"
        )
    assert first["alphas"] == second["alphas"]
    assert first["factors"] == pytest.approx(balancer.factors, rel=1e-4)
    assert first["left_out"] == balancer.left_out
    assert len(first["alphas"]) == STEPS // EVERY
    for a, b, c in zip(first["weights"], second["weights"], weights, strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, c, atol=1e-5)
    assert set(first["measured"]) == {"3", "7"}, "the layers are shared out"
    assert set(second["measured"]) == {"5"}
    assert (first["logged"], second["logged"]) == ([2, 4], []), "one process logs"


def work_with_zero(rank: Any, folder: Path) -> None:
    from torch.distributed.optim import (
        ZeroRedundancyOptimizer,
    )  # warns of torch.jit when it is imported

    meet(rank, folder)
    try:
        model = DistributedDataParallel(net())
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), torch.optim.AdamW, lr=0.01, weight_decay=0.1
        )
        balancer = st.Balancer(model, optimizer, "tempbalance", every=EVERY)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        train(model, optimizer, STEPS, after=lambda _: scheduler.step())
        found = {
            "factors": balancer.factors,
            "steps": balancer.steps,
            "weights": weights_of(model),
            "held": sum(len(group["params"]) for group in optimizer.optim.param_groups),
        }
        torch.save(found, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_an_optimizer_that_is_shared_out_between_processes(tmp_path: Path) -> None:
    spawn(work_with_zero, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    balancer, weights = alone()
    assert first["held"] + second["held"] == len(weights), "each process steps its share"
    assert first["factors"] == second["factors"] == pytest.approx(balancer.factors, rel=1e-4)
    assert first["steps"] == second["steps"] == STEPS
    for a, b, c in zip(first["weights"], second["weights"], weights, strict=True):
        assert torch.equal(a, b)
        assert torch.allclose(a, c, atol=1e-5)


@pytest.mark.slow
def test_a_trainer_shares_the_layers_out(tmp_path: Path) -> None:
    spawn(work_with_a_trainer, (free_port(), tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["factors"] == second["factors"]
    assert len(first["factors"]) == len(first["measured"]) == len(second["measured"]) == 14
    assert not set(first["measured"]) & set(second["measured"])
