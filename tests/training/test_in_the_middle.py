"""What happens in the middle of a step: the user's groups are whole again at once, and the rest of
the step has the factors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spectail as st
from spectail.training import groups, steps


class Watched(torch.optim.SGD):
    """An optimizer that calls ``first`` when it steps, and keeps the rates that it steps with."""

    first: Callable[[Watched, Callable[[], Any]], None] = lambda *_: None
    rates: tuple[float, ...] = ()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        type(self).first(self, closure)
        self.rates = tuple(group["lr"] for group in self.param_groups)
        super().step()


def balanced(kind: type[torch.optim.Optimizer] = Watched) -> tuple[nn.Module, Any, st.Balancer]:
    """A model, its optimizer, and a Balancer that has measured."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(5)])
    optimizer = kind(model.parameters(), lr=0.1)  # type: ignore[call-arg]
    balancer = st.Balancer(model, optimizer, "tempbalance", every=None)
    balancer.update()
    gradients(model)
    return model, optimizer, balancer


def gradients(model: nn.Module) -> Tensor:
    model.zero_grad()
    loss: Tensor = model(torch.ones(2, 64)).square().mean()
    loss.backward()
    return loss


def catching(optimizer: Watched, closure: Callable[[], Any]) -> None:
    try:
        closure()
    except ValueError:
        return


def saving(optimizer: Watched, closure: Callable[[], Any]) -> None:
    assert len(optimizer.state_dict()["param_groups"]) == 1


@pytest.mark.parametrize("first", [catching, saving])
def test_the_rest_of_a_step_has_the_factors(first: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, optimizer, balancer = balanced()
    monkeypatch.setattr(Watched, "first", first)

    def closure() -> None:
        raise ValueError

    optimizer.step(closure)
    expected = {0.1, *(0.1 * factor for factor in balancer.factors.values())}
    assert set(optimizer.rates) == expected
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]


def test_a_group_that_is_added_in_the_middle_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    _, optimizer, _ = balanced()
    more = nn.Parameter(torch.ones(3))

    def adding(optimizer: Watched, _: Any) -> None:
        if not any(more is p for group in optimizer.param_groups for p in group["params"]):
            optimizer.add_param_group({"params": [more], "lr": 7.0})

    monkeypatch.setattr(Watched, "first", adding)
    with pytest.warns(UserWarning, match="1 parameters came into the optimizer"):
        optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 7.0]
    more.grad = torch.ones(3)
    optimizer.step()
    assert more.tolist() == [-6.0] * 3


def test_a_balancer_that_is_removed_in_a_closure_leaves_whole_groups() -> None:
    model, optimizer, balancer = balanced(torch.optim.SGD)

    def closure() -> Tensor:
        balancer.remove()
        return gradients(model)

    optimizer.step(closure)
    assert len(optimizer.param_groups) == 1
    st.Balancer(model, optimizer, "tempbalance", every=None)


def test_a_step_within_a_step_of_the_same_optimizer() -> None:
    model, optimizer, balancer = balanced(torch.optim.SGD)
    depth = iter(range(3))

    def closure() -> Tensor:
        if next(depth) < 2:
            optimizer.step(closure)
        return gradients(model)

    optimizer.step(closure)
    assert len(optimizer.param_groups) == 1
    assert balancer.steps == 3


def test_an_interruption_at_any_moment_leaves_whole_groups() -> None:
    _, optimizer, _ = balanced(torch.optim.SGD)
    number = 0
    while interrupted(number := number + 1, optimizer):
        assert len(optimizer.param_groups) == 1, number
        assert optimizer.param_groups[0]["lr"] == 0.1
    assert number > 100


def interrupted(number: int, optimizer: torch.optim.Optimizer) -> bool:
    """Step and press Ctrl-C at a line of the modules; whether there are so many lines."""
    lines = {m.__file__: Path(str(m.__file__)).read_text().splitlines() for m in (groups, steps)}
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        known = lines.get(frame.f_code.co_filename)
        # Python looks for signals at calls and jumps: there are none in a line of ``try:`` alone.
        if event == "line" and known and known[frame.f_lineno - 1].strip() != "try:":
            count += 1
            if count == number:
                raise KeyboardInterrupt
        return trace if known or "optim" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        optimizer.step()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
