"""The measurements reach a logger as one call of ``log(values, step=...)`` each."""

import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import nn

import spectail as st
from tests.training.nets import net, train

LAYERS = ("3", "5", "7")


def balanced(model: nn.Module, log: Any, **options: Any) -> st.Balancer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return st.Balancer(model, optimizer, "tempbalance", log=log, **{"every": 2, **options})


class Calls:
    """A logger that keeps what it got."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, float], int]] = []

    def __call__(self, values: dict[str, float], step: int) -> None:
        self.got.append((values, step))


def test_a_function_gets_each_measurement_once() -> None:
    log, model = Calls(), net()
    balancer = balanced(model, log)
    train(model, balancer.optimizer, 5)
    assert [step for _, step in log.got] == [2, 4]
    for (values, _), update in zip(log.got, balancer.history, strict=True):
        assert values == {
            "mean_alpha": pytest.approx(fmean(update.alphas[x] for x in LAYERS)),
            **{f"alpha/{x}": update.alphas[x] for x in LAYERS},
            **{f"factor/{x}": update.factors[x] for x in LAYERS},
        }
        assert all(type(value) is float for value in values.values())


def test_steps_never_run_backwards_in_the_background() -> None:
    log, model = Calls(), net()
    balancer = balanced(model, log, background=True)
    train(model, balancer.optimizer, 6)
    assert [(update.step, update.applied) for update in balancer.history] == [(2, 4), (4, 6)]
    assert [step for _, step in log.got] == [4, 6]


def test_a_tensorboard_writer_gets_one_scalar_per_value() -> None:
    class Writer:
        def __init__(self) -> None:
            self.got: list[tuple[str, float, int]] = []

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.got.append((tag, value, step))

    writer, model = Writer(), net()
    balancer = balanced(model, writer)
    train(model, balancer.optimizer, 2)
    expected = balancer.history[0].scalars()
    assert len(expected) == 7
    assert writer.got == [(name, value, 2) for name, value in expected.items()]


def test_a_layer_without_an_alpha_is_left_out() -> None:
    log, model = Calls(), net()
    with torch.no_grad():
        model.get_parameter("5.weight").fill_(math.nan)
    balancer = balanced(model, log, every=None)
    with pytest.warns(UserWarning, match="5"):
        balancer.update()
    values, step = log.got[0]
    assert (step, "alpha/5" in values, values["factor/5"]) == (0, False, 1.0)
    assert values["mean_alpha"] == pytest.approx(fmean([values["alpha/3"], values["alpha/7"]]))


def test_an_error_of_the_logger_is_not_hidden() -> None:
    def log(values: dict[str, float], step: int) -> None:
        raise ConnectionError("no run")

    model = net()
    balancer = balanced(model, log, every=None)
    with pytest.raises(ConnectionError, match="no run"):
        balancer.update()


@pytest.mark.parametrize("log", ["wandb", 3, {"log": print}])
def test_what_cannot_log_is_refused(log: Any) -> None:
    with pytest.raises(st.TrainingError, match=r"log must be .* as log\(values, step=...\)"):
        balanced(net(), log)


def test_an_analysis_has_the_same_names(tmp_path: Path) -> None:
    model = net()
    values = st.analyze(model).scalars()
    assert {f"alpha/{x}" for x in LAYERS} < values.keys()
    alphas = [value for name, value in values.items() if name.startswith("alpha/")]
    assert values["mean_alpha"] == pytest.approx(fmean(alphas))
    assert len(values) == len(alphas) + 1
    tiny = st.analyze(nn.Sequential(nn.Linear(2, 2)))
    assert tiny.scalars() == {}
